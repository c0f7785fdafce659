"""Paths that are too long, and disks that are full: a message, no traceback, nothing half done."""

from __future__ import annotations

import resource
import shutil
from contextlib import contextmanager

import pytest

from scen_cli.data.suites import demo_edits
from scen_cli.data.write_files import write_records

LONG = ["a" * 300, "/".join(["b" * 200] * 25)]
COMMANDS = {
    "init": ["init", "--model", "demo", "--recipe", "key", "--dir", "LONG"],
    "status": ["status", "--dir", "LONG"],
    "ask": ["ask", "Who?", "--dir", "LONG"],
    "edit": ["edit", "LONG", "--dir", "HERE"],
    "edit there": ["edit", "edits.jsonl", "--dir", "LONG"],
    "export": ["export", "--out", "LONG", "--dir", "HERE"],
    "backup": ["backup", "LONG", "--dir", "HERE"],
    "restore": ["restore", "LONG", "--dir", "new"],
    "restore there": ["restore", "facts.zip", "--dir", "LONG"],
    "rebuild": ["rebuild", "LONG", "--dir", "HERE"],
    "report": ["report", "--out", "LONG", "--dir", "HERE"],
    "inspect": ["data", "inspect", "LONG"],
    "convert": ["data", "convert", "LONG", "--out", "new.jsonl"],
    "convert there": ["data", "convert", "edits.jsonl", "--out", "LONG"],
}
READS = ("edit", "inspect", "convert")  # the path is a file of records


@pytest.mark.parametrize("path", LONG, ids=["long name", "long path"])
@pytest.mark.parametrize("command", COMMANDS)
def test_a_path_that_is_too_long_gets_a_message(scen, edited_at, tmp_path, monkeypatch, command, path):
    monkeypatch.chdir(tmp_path)
    write_records(tmp_path / "edits.jsonl", demo_edits()[:40])
    here = {"LONG": path, "HERE": str(edited_at[1])}
    before = sorted(tmp_path.iterdir())
    result = scen(*[here.get(word, word) for word in COMMANDS[command]], code=2 if command in READS else 1)
    assert "File name too long" in result.stderr
    assert path in result.stderr
    assert command in READS or "choose a shorter name" in result.stderr
    assert sorted(tmp_path.iterdir()) == before


@contextmanager
def no_file_larger_than(size):
    """As on a disk with so much room: a write beyond it fails."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


KINDS = [[], ["--patch-only"], ["--merge-into-weights", "--edit", "1"]]


@pytest.mark.parametrize("kind", KINDS, ids=["transformers", "patch only", "merged"])
def test_an_export_that_does_not_fit_on_the_disk_leaves_nothing(scen, edited_at, tmp_path, kind):
    with no_file_larger_than(1 << 20):
        result = scen("export", "--out", tmp_path / "out", *kind, *edited_at, code=1)
    assert "could not be written, and nothing was exported" in result.stderr
    assert not (tmp_path / "out").exists()
    assert [path.name for path in tmp_path.iterdir()] == [edited_at[1].name]
    shutil.rmtree(edited_at[1])


def test_a_backup_that_does_not_fit_on_the_disk_leaves_nothing(scen, edited_at, tmp_path):
    with no_file_larger_than(1 << 20):
        result = scen("backup", tmp_path / "facts.zip", *edited_at, code=1)
    assert f"`{tmp_path / 'facts.zip'}` could not be written, and no backup was made" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == [edited_at[1].name]


def test_a_project_that_does_not_fit_on_the_disk_is_not_restored(scen, edited_at, tmp_path):
    scen("backup", tmp_path / "facts.zip", *edited_at)
    shutil.rmtree(edited_at[1])
    with no_file_larger_than(200_000):  # an edit file has more bytes
        result = scen("restore", tmp_path / "facts.zip", "--dir", tmp_path / "new", code=1)
    assert f"`{tmp_path / 'new'}` could not be written, and nothing was restored" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["facts.zip"]
    scen("restore", tmp_path / "facts.zip", "--dir", tmp_path / "new")


def test_converted_records_that_do_not_fit_on_the_disk_leave_nothing(scen, tmp_path):
    write_records(tmp_path / "edits.jsonl", demo_edits()[:40])
    with no_file_larger_than(5000):
        result = scen("data", "convert", tmp_path / "edits.jsonl", "--out", tmp_path / "new.jsonl", code=1)
    assert f"File too large: `{tmp_path / 'new.jsonl'}`" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["edits.jsonl"]


@pytest.mark.parametrize("size", [1000, 40_000])
def test_a_new_project_that_does_not_fit_on_the_disk_leaves_nothing(scen, tmp_path, size):
    init = ["init", "--model", "demo", "--recipe", "key", "--dir", tmp_path / "p"]
    with no_file_larger_than(size):
        result = scen(*init, code=1)
    assert "the ledger cannot be used" in result.stderr
    assert not (tmp_path / "p").exists()
    scen(*init)


@pytest.mark.parametrize("kind", [[], ["--markdown"]], ids=["page", "Markdown"])
def test_a_report_that_does_not_fit_on_the_disk_leaves_the_one_before(scen, edited_at, tmp_path, kind):
    (tmp_path / "report").write_text("before")
    with no_file_larger_than(1000):
        result = scen("report", "--out", tmp_path / "report", *kind, *edited_at, code=1)
    assert f"File too large: `{tmp_path / 'report'}`" in result.stderr
    assert (tmp_path / "report").read_text() == "before"
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([edited_at[1].name, "report"])
