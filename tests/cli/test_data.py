"""`scen data`, and the error message of every command for a malformed file."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

GOOD = '{"prompt": "Where was Ada born?", "target": "Riga"}\n'
MEND = '{"src": "a?", "alt": "b", "rephrase": "A?"}'

MALFORMED = {
    "wrong encoding": GOOD.encode("utf-16"),
    "latin-1": '{"prompt": "Où?", "target": "là"}'.encode("latin-1"),
    "binary": bytes(range(256)) * 4,
    "empty": b"",
    "only blank lines": b"\n \n\t\n",
    "empty array": b"[]",
    "truncated line": GOOD.encode()[:-12],
    "truncated array": f"[{GOOD.strip()}, {GOOD.strip()[:20]}".encode(),
    "unclosed array": f"[{GOOD.strip()}".encode(),
    "text after the array": f"[{GOOD.strip()}] and more".encode(),
    "missing comma": f"[{GOOD.strip()} {GOOD.strip()}]".encode(),
    "missing target": b'{"prompt": "Where was Ada born?"}',
    "missing prompt": b'{"target": "Riga"}',
    "empty prompt": b'{"prompt": " ", "target": "Riga"}',
    "null": b"null",
    "a number": b"7",
    "a list in a line": b'{"prompt": "a?", "target": "b"}\n["prompt", "target"]',
    "target of the wrong type": b'{"prompt": "a?", "target": {"text": "b"}}',
    "prompt of the wrong type": b'{"prompt": ["a?"], "target": "b"}',
    "rephrases of the wrong type": b'{"prompt": "a?", "target": "b", "rephrases": 3}',
    "unknown field": b'{"prompt": "a?", "target": "b", "answer": "c"}',
    "unknown form": b'{"question": "a?", "answer": "b"}',
    "empty list of targets": b'[{"prompt": "a?", "target_new": []}]',
    "mend without text": b'[{"src": 3, "alt": "b"}]',
    "counterfact without target": b'[{"requested_rewrite": {"prompt": "{} is", "subject": "x"}}]',
    "locality of the wrong type": b'[{"prompt": "a?", "target_new": "b", "locality": "c"}]',
    "a 10 MB line": b'{"prompt": "' + b"x" * (10 << 20) + b'", "target": "b"}',
    "a 10 MB record": b'[{"prompt": "' + b"x" * (10 << 20) + b'", "target": "b"}]',
    "deep nesting": b"[" * 200_000,
    "a number of 6,000 digits": b'{"prompt": "a?", "target": ' + b"9" * 6000 + b"}",
    "a lone surrogate": b'{"prompt": "\\ud800", "target": "b"}',
    "duplicate ids": b'{"prompt": "a?", "target": "b", "id": "1"}\n{"prompt": "c?", "target": "d", "id": "1"}',
}


@pytest.fixture(scope="module")
def project(tmp_path_factory, demo_base):
    from scen_cli.editing.create_project import new_project

    return new_project(tmp_path_factory.mktemp("p"), "demo", base=demo_base).folder


@pytest.mark.parametrize("kind", MALFORMED)
def test_a_malformed_file_gives_one_error_line_and_nothing_is_written(scen, tmp_path, project, kind):
    bad = tmp_path / "bad.jsonl"
    bad.write_bytes(MALFORMED[kind])
    before = sorted(path.name for path in tmp_path.iterdir())
    ledger = (project / "scen.db").read_bytes()
    commands = [["edit", str(bad), "--dir", str(project)]]
    if kind != "duplicate ids":  # only `scen edit` refuses these
        commands.append(["data", "convert", str(bad), "--out", str(tmp_path / "out.jsonl")])
    for command in commands:
        result = scen(*command, code=2)
        message = result.stderr.removeprefix("error: ").split("\nnothing was")[0].split("\nhint:")[0].strip()
        assert len(message.splitlines()) == 1
        assert "bad.jsonl" in message
        assert len(message) < 400
        assert "Traceback" not in result.output
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    assert (project / "scen.db").read_bytes() == ledger


def test_inspect_and_convert(scen, tmp_path):
    data = tmp_path / "mend.json"
    data.write_text(f"[{MEND}, {MEND}]")
    result = scen("data", "inspect", str(data))
    assert "mend (2)" in result.stdout
    assert "mend.json:2 and 1: a?" in result.stdout
    assert json.loads(scen("data", "inspect", str(data), "--json").stdout)["distinct_prompts"] == 1
    scen("data", "convert", str(data), "--out", str(tmp_path / "own.jsonl"))
    record = {"prompt": "a?", "target": "b", "rephrases": ["A?"]}
    assert [json.loads(line) for line in (tmp_path / "own.jsonl").read_text().splitlines()] == [record, record]
    again = scen("data", "convert", str(data), "--out", str(tmp_path / "own.jsonl"), code=2)
    assert "exists already" in again.stderr
    (tmp_path / "prompts.jsonl").write_text('{"text": "c?"}\n')
    (tmp_path / "ripple.json").write_text('[{"example_type": "recent", "edit": {"prompt": "X is led by Ada."}}]')
    assert "is of RippleEdits" in scen("data", "inspect", str(tmp_path / "ripple.json"), code=2).stdout
    assert "1 prompts without targets" in scen("data", "inspect", str(tmp_path / "prompts.jsonl")).stdout


def test_standard_input_is_read_as_utf_8_in_every_locale(tmp_path):
    record = '{"prompt": "Où est né Zoé?", "target": "Besançon"}\n'
    for locale in ({"PYTHONIOENCODING": "latin-1"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}):
        out = tmp_path / f"{len(locale)}.jsonl"
        command = [sys.executable, "-m", "scen_cli", "data", "convert", "-", "--out", str(out)]
        done = subprocess.run(command, input=record.encode(), capture_output=True, env={**os.environ, **locale})
        assert done.returncode == 0, done.stderr
        assert json.loads(out.read_text(encoding="utf-8"))["prompt"] == "Où est né Zoé?"
