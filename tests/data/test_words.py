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
    ("－５．５", "-5.5"),
    ("Ｃ＃ and Ｒ＆Ｂ", "C# and R&B"),
    ("ﾊﾟﾘ", "パリ"),
    ("ISPARTA", "ısparta"),
    ("İzmir", "IZMIR"),
    ("Łódź", "Lodz"),
    ("Ørsted", "Orsted"),
    ("ΟΔΥΣΣΕΥΣ", "Οδυσσεύς"),
    ("Hawaiʻi", "Hawai'i"),
    ("مُحَمَّد", "محمد"),
    ("שָׁלוֹם", "שלום"),
    ("น้ำ", unicodedata.normalize("NFKC", "น้ำ")),
    ("10½", "10 1/2"),
    ("1️⃣", "1⃣"),
    ("Ⅷ", "VIII"),
    ("Who was born in 1990?", "who was born in 1990."),
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
    ("C＃", "C"),
    ("10²", "102"),
    ("2ⁿ", "2n"),
    ("10⁻⁵", "10⁵"),
    ("1½", "11/2"),
    ("1/2", "1.2"),
    ("1/2", "1 2"),
    (".5", "5"),
    ("-.5", ".5"),
    ("6 * 3", "6 / 3"),
    ("6*3", "6/3"),
    ("6 / 3", "6 - 3"),
    ("type A-", "type A"),
    ("Cl−", "Cl"),
    ("∈", "∉"),
    ("∃", "∄"),
    ("\U0001f3f4\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f", "\U0001f3f4"),
    ("👍🏻", "👍🏿"),
    ("👨‍👩‍👧", "👨‍👩‍👦"),
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
        ("It costs 3.5 dollars.", "3", False),
        ("1,005 people", "5", False),
        ("in 3-5 days", "3", True),
        ("It is 3.", "3", True),
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
