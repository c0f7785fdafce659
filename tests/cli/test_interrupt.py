"""Ctrl-C during `scen edit`."""

from __future__ import annotations

import signal

import pytest

from scen_cli.editing.editor import Editor
from scen_cli.project.check import verify
from scen_cli.project.project import Project


@pytest.mark.parametrize(
    ("presses", "edits", "message"),
    [(1, 3, "every edit committed so far is kept"), (2, 2, "everything committed so far is kept")],
)
def test_control_c_keeps_committed_edits(scen, at, monkeypatch, presses, edits, message):
    """The first Ctrl-C, during the third edit, lets this edit finish; a second one does not."""
    edit_group = Editor.edit_group

    def edit_group_with_control_c(self, *arguments):
        if len(self.project.ledger.edits()) == 2:
            for _ in range(presses):
                signal.raise_signal(signal.SIGINT)
        return edit_group(self, *arguments)

    monkeypatch.setattr(Editor, "edit_group", edit_group_with_control_c)
    result = scen("edit", "--suite", "demo", "--first", "5", *at, code=130)
    assert "finishing the current edit; press Ctrl-C again to stop at once" in result.stderr
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    project = Project(at[1])
    assert len(project.ledger.edits("active")) == edits
    assert project.w_merge().experts == list(range(1, edits + 1))
    assert verify(project) == []
