"""Reading piece by piece: places, long files, and arrays that end too soon."""

from __future__ import annotations

import json
import time
import tracemalloc

import pytest

from scen_cli.data.json_stream import MAX_RECORD, read_items
from scen_cli.errors import UsageError


def items(path, text):
    path.write_text(text, encoding="utf-8")
    return list(read_items(str(path)))


def test_an_array_longer_than_a_piece_reads_whole(tmp_path):
    values = [{"n": n, "text": "é\n" * (n % 700)} for n in range(600)]
    text = json.dumps(values, ensure_ascii=False, indent=2)
    assert len(text) > 300_000
    assert items(tmp_path / "a.json", text) == list(enumerate(values, start=1))
    assert items(tmp_path / "b.json", "\ufeff \n" + json.dumps([1, 23, "x", []])) == [
        (1, 1),
        (2, 23),
        (3, "x"),
        (4, []),
    ]
    assert items(tmp_path / "c.json", " [ ] \n") == []


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[1, 2", "line 1, column 6: Expecting ','"),
        ("[1 2]", "line 1, column 4: Expecting ','"),
        ("[1,\n 2,]", "line 2, column 4: Expecting value"),
        ('[{"a": 1},\n{"b": }]', "line 2, column 7: Expecting value"),
        ("[1]]", "line 1, column 4: Extra data"),
        ('["never ends', "line 1, column 2: Unterminated string"),
        ("[" + "[" * 100_000, "not JSON that can be read"),
    ],
)
def test_where_an_array_breaks(tmp_path, text, problem):
    with pytest.raises(UsageError) as error:
        items(tmp_path / "a.json", text)
    assert problem in str(error.value)


def test_objects_over_several_lines(tmp_path):
    path, values = tmp_path / "a.json", [{"prompt": "a?", "target": "b"}, {"data": [{"c": "d"}]}]
    path.write_text("\n" + "\n".join(json.dumps(value, indent=2) for value in values) + "\n")
    assert list(read_items(str(path))) == [(1, values[0]), (2, values[1])]
    path.write_text('{\n "prompt": "a?"\n')
    with pytest.raises(UsageError, match="not valid JSON: line 3, column 1"):
        list(read_items(str(path)))


def test_a_record_without_end(tmp_path):
    long = '{"prompt": "' + "x" * (10 << 20) + '", "target": "y"}'
    [(place, problem), after] = items(tmp_path / "a.jsonl", long + '\n{"prompt": "a"}\n')
    assert place == 1
    assert str(problem) == f"longer than {MAX_RECORD} characters"
    assert after == (2, {"prompt": "a"})
    with pytest.raises(UsageError, match="record on line 1 is over"):
        items(tmp_path / "a.json", f"[{long}]")


def test_memory_does_not_grow_with_the_file(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("[" + ",".join([json.dumps({"text": "x" * 1000})] * 20_000) + "]")
    tracemalloc.start()
    count = sum(1 for _ in read_items(str(path)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 20_000
    assert peak < 2 << 20 < path.stat().st_size


def test_a_field_that_stands_twice_is_told_by_name(tmp_path):
    [(_place, problem), after] = items(tmp_path / "a.jsonl", '{"a": {"b": 1, "b": 2}}\n{"a": 1}\n')
    assert str(problem) == "an object has the field 'b' twice"
    assert after == (2, {"a": 1})
    with pytest.raises(UsageError, match="the field 'b' twice"):
        items(tmp_path / "a.json", '[{"b": 1, "b": 2}]')


def test_much_white_space_takes_neither_time_nor_memory(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("\n" * 300_000 + " " * 3_000_000 + '7\n\n{"a": 1}\n')
    tracemalloc.start()
    started = time.perf_counter()
    assert list(read_items(str(path))) == [(300_001, 7), (300_003, {"a": 1})]
    assert time.perf_counter() - started < 5
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20
    with pytest.raises(UsageError, match="line 4, column 3: Expecting value"):
        items(tmp_path / "b.json", "\n \n\n[ }\n")
