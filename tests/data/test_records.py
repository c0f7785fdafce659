"""Edit files: what is understood, and what is said of what is not."""

from __future__ import annotations

import json

import pytest

from scen_cli.data.entries import read_entries
from scen_cli.data.records import EditRecord
from scen_cli.errors import UsageError

GOOD = {"prompt": "Where was Ada born?", "target": "Riga"}


def write(path, *lines):
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines) + "\n")
    return str(path)


def test_jsonl_json_and_a_byte_order_mark_read_the_same(tmp_path):
    full = {**GOOD, "subject": "Ada", "rephrases": ["Ada was born where?"]}
    record = EditRecord(prompt="Where was Ada born?", target="Riga", subject="Ada", rephrases=("Ada was born where?",))
    lines = write(tmp_path / "a.jsonl", full)
    array = tmp_path / "a.json"
    array.write_text(json.dumps([full], indent=2))
    marked = tmp_path / "b.jsonl"
    marked.write_text("\ufeff" + json.dumps(full), encoding="utf-8")
    for path in (lines, str(array), str(marked)):
        assert [entry.record for entry in read_entries(path)] == [record]


def test_line_numbers_count_blank_lines(tmp_path):
    path = write(tmp_path / "a.jsonl", "", GOOD, "", {**GOOD, "prompt": "Who?"})
    assert [str(entry.where) for entry in read_entries(path)] == ["a.jsonl:2", "a.jsonl:4"]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("{not json", "not valid JSON: line 1, column 2: Expecting property name"),
        ("[1, 2]", None),
        ('"text"', "expected a JSON object"),
        ('{"prompt": "a", "target": ' + "9" * 5000 + "}", "not JSON that can be read"),
        ("[" * 100_000, "not JSON that can be read"),
        ('{"prompt": "\\ud800", "target": "b"}', "`prompt` holds half a Unicode character"),
        ({"prompt": "Who?"}, "`target` is missing"),
        ({"target": "Riga"}, "`prompt` is missing"),
        ({**GOOD, "target": "  "}, "`target` is empty"),
        ({**GOOD, "prompt": ""}, "`prompt` is empty"),
        ({**GOOD, "target": 7}, "`target` must be text"),
        ({**GOOD, "rephrase": "Where?"}, "`rephrase` is not a known field"),
        ({**GOOD, "rephrases": "Where?"}, "`rephrases` must be a list"),
        ('{"prompt": "a", "target": "b", "subject": "\\ud800"}', "`subject` holds half a Unicode character"),
        ({**GOOD, "rephrases": [1]}, "`rephrases.0` must be text"),
    ],
)
def test_a_bad_record_says_which_field_and_why(tmp_path, line, problem):
    path = write(tmp_path / "a.jsonl", {**GOOD, "prompt": "First?"}, line)
    entry = read_entries(path)[1]
    assert entry.record is None
    assert str(entry.where) == "a.jsonl:2"
    assert (problem or "expected a JSON object") in entry.problem


def test_repeats_and_contradictions_name_the_earlier_line(tmp_path):
    path = write(tmp_path / "a.jsonl", GOOD, GOOD, {**GOOD, "target": "Oslo"})
    entries = read_entries(path)
    assert entries[1].problem == "repeats line 1"
    assert entries[2].problem == "gives another target than line 1 for the same prompt"
    assert [entry.record is None for entry in entries] == [False, True, True]


def test_a_target_with_decomposed_accents_is_a_repeat(tmp_path):
    path = write(tmp_path / "a.jsonl", {**GOOD, "target": "Tom\u00e9"}, {**GOOD, "target": "Tome\u0301"})
    assert read_entries(path)[1].problem == "repeats line 1"


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(UsageError, match="No such file"):
        read_entries(str(tmp_path / "none.jsonl"))
    empty = tmp_path / "empty.jsonl"
    empty.write_text("\n\n")
    with pytest.raises(UsageError, match="holds no records"):
        read_entries(str(empty))
    binary = tmp_path / "binary.jsonl"
    binary.write_bytes(b"\xff\xfe\x00{")
    with pytest.raises(UsageError, match="not UTF-8"):
        read_entries(str(binary))
    broken = tmp_path / "broken.json"
    broken.write_text('[\n{"prompt": "a"},\n{"prompt": ]')
    with pytest.raises(UsageError, match="not valid JSON: line 3, column"):
        read_entries(str(broken))


def test_text_is_kept_as_it_is_but_for_space_around_it(tmp_path):
    path = write(tmp_path / "a.jsonl", {"prompt": " Wo? [bold]\u2028x ", "target": "Zürich ☃"})
    assert read_entries(path)[0].record == EditRecord(prompt="Wo? [bold]\u2028x", target="Zürich ☃")
