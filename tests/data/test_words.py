"""Which texts have the same words."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from scen_cli.data.words import contains, plain, plain_words, words_of

SAME = [
    ("Who wrote Nana?", "who wrote nana"),
    ("Élan vital", "elan vital"),
    ("naïve", unicodedata.normalize("NFD", "naïve")),
    ("ガ行", unicodedata.normalize("NFD", "ガ行")),
    ("“Nana” – who wrote it?", '"Nana", who wrote it?'),
    ("O’Brien", "O'Brien"),
    ("Who is Krull's father?", "Who is Krull father?"),
    ("Al-Qaeda", "al qaeda"),
    ("Straße", "STRASSE"),
    ("ﬁnal", "final"),
    ("Ｌｉｓｂｏｎ", "Lisbon"),
    ("rock 'n' roll", "rock n roll"),
    ("dogs' names", "dogs names"),
    ("zero\u200bwidth", "zerowidth"),
    ("1990-1995", "1990–1995"),
    ("−5 degrees", "-5 degrees"),
]
DIFFERENT = [
    ("C", "C++"),
    ("C", "C#"),
    ("C++", "C#"),
    ("∂", "∫"),
    ("👍", "👎"),
    ("👍", "👍👍"),
    ("हिन्दी", "हन्द"),
    ("กำ", "กา"),
    ("が", "か"),
    ("3.5", "35"),
    ("-5", "5"),
    ("AT&T", "ATT"),
    ("$5", "€5"),
    ("Pesustad", "Pesustadia"),
    ("x < y", "x ≤ y"),
]


@pytest.mark.parametrize(("first", "second"), SAME)
def test_texts_that_say_the_same(first, second):
    assert plain(first) == plain(second) != ""


@pytest.mark.parametrize(("first", "second"), DIFFERENT)
def test_texts_that_say_different_things(first, second):
    assert plain(first) != plain(second)


@pytest.mark.parametrize(
    ("text", "part", "contained"),
    [
        ("Where is the C++ standard?", "C", False),
        ("It is written in C.", "C", True),
        ("里斯本是哪个国家的首都？", "里斯本", True),
        ("리스본의 수도", "리스본", True),
        ("Pesustadia is near.", "Pesustad", False),
        ("Paris's mayor", "paris", True),
        ("anything", "", False),
        ("anything", "?", False),
    ],
)
def test_a_text_contains_whole_words(text, part, contained):
    assert contains(text, part) is contained


@given(st.text(max_size=40))
def test_words_lie_in_order_where_they_are_found(text):
    words = words_of(text)
    ends = [0, *(word.end for word in words)]
    assert all(before <= word.start < word.end for before, word in zip(ends, words, strict=False))
    assert all(plain_words(text[word.start : word.end]) != () for word in words)


@given(st.text(st.characters(max_codepoint=0x52F), max_size=40))
@example("΅")
@example("b΅a")
def test_composed_and_decomposed_texts_are_the_same(text):
    assert plain(unicodedata.normalize("NFC", text)) == plain(unicodedata.normalize("NFD", text))
