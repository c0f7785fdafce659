"""Paths that are too long, and disks that are full: a message, no traceback, nothing half done."""

from __future__ import annotations

import resource
import shutil
from contextlib import contextmanager

import pytest

LONG = ["a" * 300, "/".join(["b" * 200] * 25)]
COMMANDS = {
    "init": ["init", "--model", "demo", "--recipe", "key", "--dir", "LONG"],
    "status": ["status", "--dir", "LONG"],
    "edit": ["edit", "LONG", "--dir", "HERE"],
    "export": ["export", "--out", "LONG", "--dir", "HERE"],
    "backup": ["backup", "LONG", "--dir", "HERE"],
    "restore": ["restore", "LONG", "--dir", "new"],
    "rebuild": ["rebuild", "LONG", "--dir", "HERE"],
    "report": ["report", "--out", "LONG", "--dir", "HERE"],
    "data": ["data", "inspect", "LONG"],
}


@pytest.mark.parametrize("path", LONG, ids=["long name", "long path"])
@pytest.mark.parametrize("command", COMMANDS)
def test_a_path_that_is_too_long_gets_a_message(scen, edited_at, tmp_path, monkeypatch, command, path):
    monkeypatch.chdir(tmp_path)
    here = {"LONG": path, "HERE": str(edited_at[1])}
    before = sorted(tmp_path.iterdir())
    code = 2 if command in ("edit", "data") else 1
    result = scen(*[here.get(word, word) for word in COMMANDS[command]], code=code)
    assert "File name too long" in result.stderr
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


@pytest.mark.parametrize("kind", [[], ["--merge-into-weights", "--edit", "1"]], ids=["transformers", "merged"])
def test_an_export_that_does_not_fit_on_the_disk_leaves_nothing(scen, edited_at, tmp_path, kind):
    with no_file_larger_than(1 << 20):
        result = scen("export", "--out", tmp_path / "out", *kind, *edited_at, code=1)
    assert "could not be written, and nothing was exported" in result.stderr
    assert not (tmp_path / "out").exists()
    assert [path.name for path in tmp_path.iterdir()] == [edited_at[1].name]
    shutil.rmtree(edited_at[1])
