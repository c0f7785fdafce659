"""Tables that `datasets` exports: the same records as from JSON, and where a cell is wrong."""

from __future__ import annotations

import datetime
import json
import subprocess
import sys

import pytest

from scen_cli.data.entries import parse_file
from scen_cli.data.json_stream import read_items
from scen_cli.data.suites import load_suite, read_prompts
from scen_cli.errors import UsageError

ROWS = [
    {
        "prompt": "Where, oh where?",
        "target": "1987",
        "subject": "Ada",
        "rephrases": ["Whither?", 'The "where"?'],
        "portability": [{"prompt": "Why?", "target": "So", "kind": None}],
        "id": "7",
    },
    {"prompt": "NA?", "target": "None", "subject": None, "rephrases": [], "portability": None, "id": None},
]
EXPECTED = [
    {**ROWS[0], "portability": [{"prompt": "Why?", "target": "So"}]},
    {"prompt": "NA?", "target": "None"},
]


@pytest.fixture
def exported(tmp_path):
    """A function that writes rows as `datasets` exports them, and returns the path."""
    datasets = pytest.importorskip("datasets", reason="needs scen-cli[datasets]")

    def write(ending: str, rows: list[dict]):
        path = tmp_path / f"[1] edits*.{ending}"  # a path is no pattern
        if ending == "csv":  # where lists are JSON
            rows = [{k: json.dumps(v) if isinstance(v, list) else v for k, v in row.items()} for row in rows]
        table = datasets.Dataset.from_list(rows)
        if ending == "arrow":
            table.save_to_disk(str(tmp_path / "saved"))
            [file] = (tmp_path / "saved").glob("*.arrow")
            file.rename(path)
        else:
            getattr(table, f"to_{ending}")(str(path))
        return path

    return write


@pytest.mark.parametrize("ending", ["csv", "parquet", "arrow"])
def test_a_row_is_what_a_json_record_would_be(exported, tmp_path, ending):
    path = exported(ending, ROWS)
    assert [entry.record.as_json() for entry in parse_file(str(path))] == EXPECTED
    assert [record.as_json() for record in load_suite(str(path)).edits] == EXPECTED
    assert read_prompts(path) == ["Where, oh where?", "NA?"]


@pytest.mark.parametrize("ending", ["csv", "parquet", "arrow"])
def test_commands_read_tables_and_tell_the_row(scen, exported, tmp_path, ending):
    path = exported(ending, [{**ROWS[0], "prompt": None}, ROWS[1]])
    assert scen("data", "inspect", path, "--json", code=0).stdout.count(":1: `prompt` is missing") == 1
    result = scen("data", "convert", path, "--out", tmp_path / "own.jsonl", code=2)
    assert f"[1] edits*.{ending}:1: `prompt` is missing" in result.stderr
    scen("init", "--model", "demo", "--recipe", "key", "--dir", tmp_path / "p")
    path = exported(ending, [{"prompt": "Where was Ada born?", "target": "Peru", "rephrases": ["Ada was born in?"]}])
    scen("data", "convert", path, "--out", tmp_path / "own.jsonl")
    assert json.loads((tmp_path / "own.jsonl").read_text())["rephrases"] == ["Ada was born in?"]
    scen("edit", path, "--dir", tmp_path / "p")
    assert "Peru" in scen("ask", "Where was Ada born?", "--dir", tmp_path / "p").stdout


def test_published_forms_keep_their_shape(exported):
    """Nested columns have empty fields wherever another row has a value."""
    rows = [
        {"prompt": prompt, "target_new": "b", "locality": {kind: [{"prompt": "c?", "ground_truth": "d"}]}}
        for prompt, kind in (("a?", "Relation_Specificity"), ("e?", "Forgetfulness"))
    ]
    for ending in ("parquet", "arrow"):
        kinds = [entry.record.locality[0].kind for entry in parse_file(str(exported(ending, rows)))]
        assert kinds == ["same-subject", "Forgetfulness"]


def test_values_that_json_lacks(exported):
    when = datetime.date(2020, 1, 2)
    path = exported("parquet", [{"prompt": "a?", "target": when, "id": float("nan")}])
    assert list(read_items(str(path))) == [(1, {"prompt": "a?", "target": "2020-01-02"})]
    path = exported("arrow", [{"prompt": "a?", "target": b"\xff"}])
    with pytest.raises(UsageError, match=":1: `target` holds bytes, which is no text"):
        list(read_items(str(path)))


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("a.csv", b"prompt,target\na?,b\nc?,Paris, France\n", "a.csv:2: 3 cells, but the header has 2"),
        ("a.csv", b"prompt,target\na?\n", "a.csv:1: 1 cells, but the header has 2"),
        ("a.csv", b'prompt,target\na?,b\n"c?,d\n', "a.csv:2: not valid CSV: unexpected end of data"),
        ("a.csv", b"prompt,target\n", "holds no records"),
        ("a.csv", b"", "holds no records"),
        ("a.csv", b"prompt,prompt\na,b\n", "has the column 'prompt' twice"),
        ("a.csv", b"prompt,target\n\xff,b\n", "is not UTF-8 text"),
        ("a.csv", b"prompt,target,truth\na?,b,['c' 'd']\n", "a.csv:1: `truth` is neither text nor a JSON list"),
        ("a.parquet", b"no table", "cannot be read as a table: "),
        ("a.parquet", b"", "cannot be read as a table: "),
        ("a.arrow", b"no table", "cannot be read as a table: "),
        ("a.csv", b"prompt;target\na?;b\n", "it has `prompt;target`"),
        ("A.CSV", b"x,y\n1,2\n", "A.CSV:1: is of none of the known forms"),
    ],
)
def test_a_table_that_cannot_be_read(scen, tmp_path, name, content, problem):
    pytest.importorskip("datasets", reason="needs scen-cli[datasets]")
    (tmp_path / name).write_bytes(content)
    result = scen("data", "convert", tmp_path / name, "--out", tmp_path / "out.jsonl", code=2)
    assert problem in result.stderr
    assert not (tmp_path / "out.jsonl").exists()


def test_a_table_without_rows_and_one_that_other_programs_write(tmp_path):
    pytest.importorskip("datasets", reason="needs scen-cli[datasets]")
    import pyarrow
    from pyarrow import feather, parquet

    table = pyarrow.table({"prompt": ["a?"], "target": ["b"]})
    feather.write_feather(table, str(tmp_path / "a.arrow"), compression="uncompressed")
    assert list(read_items(str(tmp_path / "a.arrow"))) == [(1, {"prompt": "a?", "target": "b"})]
    parquet.write_table(table.slice(0, 0), str(tmp_path / "a.parquet"))
    with pytest.raises(UsageError, match="holds no records"):
        list(read_items(str(tmp_path / "a.parquet")))
    (tmp_path / "a.csv").write_text(" prompt , target\na?, b\n")
    assert [entry.record.target for entry in parse_file(str(tmp_path / "a.csv"))] == ["b"]


def test_the_cells_of_a_csv_file_are_text(exported, tmp_path):
    pytest.importorskip("datasets", reason="needs scen-cli[datasets]")
    path = tmp_path / "a.csv"
    path.write_text('\ufeff,prompt,target,truth\n0,"a\n?",0042,\n\n1,[],"[1, 2]",[]\n')  # as pandas writes its index
    rows = [{"prompt": "a\n?", "target": "0042"}, {"prompt": "[]", "target": "[1, 2]", "truth": []}]
    assert list(read_items(str(path))) == [(1, rows[0]), (2, rows[1])]


def test_without_the_package_the_message_says_how_to_install_it(tmp_path, monkeypatch, scen):
    (tmp_path / "a.csv").write_text("prompt,target\na,b\n")
    monkeypatch.setitem(sys.modules, "datasets", None)
    result = scen("data", "inspect", tmp_path / "a.csv", code=2)
    assert "needs the package `datasets`" in result.stderr
    assert "pip install 'scen-cli[datasets]'" in result.stderr


def test_a_missing_table(scen):
    pytest.importorskip("datasets", reason="needs scen-cli[datasets]")
    assert "cannot read `no.csv`: No such file" in scen("data", "inspect", "no.csv", code=2).stderr


def test_reading_a_table_does_not_import_torch(exported):
    path = exported("parquet", ROWS)
    code = (
        "import sys; from scen_cli.data.json_stream import read_items; "
        f"assert len(list(read_items({str(path)!r}))) == 2; assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
