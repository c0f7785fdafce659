"""Names in texts."""

from __future__ import annotations

import pytest

from scen_cli.data.words import plain_words
from scen_cli.model.name_index import NameIndex

FOUND = [
    ("Republic of Mahabad", "What is the last year of the Mahabad Republic?"),
    ("Battle of the Java Sea", "When did the battle on the Java Sea begin?"),
    ("Princess Leopoldina of Brazil", "Who is Princess Leopoldina's mother from Brazil?"),
    ("Fibronectin", "What does fibronctin do?"),
    ("17 Sagittarii", "Where is 17 Sagittarius?"),
    ("Turkestanian salamander", "What kind of animal is the Turkestan salamander?"),
    ("Siau scops owl", "Where do Siau Scops owls live?"),
    ("The Decameron Tales", "Who wrote Decameron Tales?"),
    ("C++", "Who designed c++?"),
    ("里斯本", "里斯本是哪个国家的首都？"),
    ("Al-Khwarizmi", "Where was al Khwarizmi born?"),
]
NOT_FOUND = [
    ("Slovakia", "What is the capital of Slovenia?"),
    ("United Nations", "Is the united states a country or nation?"),
    ("Niger", "What is the capital of Nigeria?"),
    ("Republic of Niger", "What is the capital of the Republic of Nigeria?"),
    ("Dominica", "What is the capital of the Dominican Republic?"),
    ("Austria", "Who is the Austrian chancellor?"),
    ("Iran", "What is the capital of Iraq?"),
    ("43 Sagittarii", "Where is 17 Sagittarius?"),
    ("C", "Who designed C++?"),
    ("C++", "Who designed C#?"),
    ("The Who", "Who sang it?"),
    ("Ivan Gromener", "Ivan said that nobody in the whole wide world ever saw Gromener"),
    ("Pesustad", "Where is Pesustadia?"),
    ("Maria Lopezin", "Where was Marta Lopezan born?"),  # one error is an error, two make another name
    ("", "Who?"),
    ("?!", "Who?!"),
]


@pytest.mark.parametrize(("name", "text"), FOUND)
def test_a_name_is_found(name, text):
    assert [found.name for found in NameIndex([["Zzyzx"], [name]]).find(plain_words(text))] == [1]


@pytest.mark.parametrize(("name", "text"), NOT_FOUND)
def test_another_name_is_not_taken_for_it(name, text):
    assert NameIndex([[name]]).find(plain_words(text)) == []


def test_a_name_that_is_written_right_leaves_nothing_to_near_names():
    index = NameIndex([["Johann Bachmann"], ["Johan Bachmann"]])
    assert [found.name for found in index.find(plain_words("Where was Johan Bachmann born?"))] == [1]
    assert [found.name for found in index.find(plain_words("Where was Johanna Bachmann born?"))] == [0]


def test_every_occurrence_is_a_place_and_places_do_not_overlap():
    [found] = NameIndex([["New York", "New York City", "NYC"]]).find(plain_words("New York City or NYC or new york"))
    assert found.places == [(0, 3), (4, 5), (6, 8)]


def test_parts_are_joined_over_words_that_link_them():
    [found] = NameIndex([["Prince Andrew of Greece and Denmark"]]).find(
        plain_words("Who was Prince Andrew's father from Greece and Denmark?")
    )
    assert (found.near, found.places) == (True, [(2, 4), (6, 9)])
