"""The scripts in `examples/` run as they are."""

from __future__ import annotations

import runpy
import sys

import pytest

from tests.docs.pages import ROOT

EXAMPLES = sorted(path.name for path in (ROOT / "examples").glob("*.py"))
FAST = {"library_use.py"}


@pytest.mark.parametrize(
    "example", [pytest.param(name, marks=[] if name in FAST else pytest.mark.slow) for name in EXAMPLES]
)
def test_example_runs(example, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [example, str(tmp_path)])
    runpy.run_path(str(ROOT / "examples" / example), run_name="__main__")
    assert "Kenya" in capsys.readouterr().out
