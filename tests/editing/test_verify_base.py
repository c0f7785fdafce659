"""`scen verify --deep` with the base: stored keys must be those that the base gives now."""

from __future__ import annotations

from scen_cli.data.suites import demo_edits
from scen_cli.editing.verify_base import key_problems
from scen_cli.project.check import verify
from scen_cli.project.edit_files import EditTensors, write_edit
from tests.conftest import edit_all


def test_key_problems_names_an_edit_whose_key_the_base_does_not_give(make_editor):
    """File and ledger agree: then the base is another one, or was read differently."""
    editor = make_editor("key")
    edit_all(editor, demo_edits()[:3])
    assert key_problems(editor) == []
    index = editor.project.files.index(editor.project.find(2))
    tensors = EditTensors(editor.project.expert(2), index["neuron"], index["key"] * 1.001)
    stored = write_edit(editor.project.folder, 2, tensors, {})
    row = {"file": stored.file, "sha256": stored.sha256, "size": stored.size, "index_sha256": stored.index_sha256}
    editor.project.ledger.db["edits"].update(2, row)
    assert [problem.edit for problem in key_problems(editor)] == [2]


def test_the_deep_check_reports_progress(edited):
    files, keys = [], []
    assert verify(edited.project, deep=True, progress=lambda *done: files.append(done)) == []
    assert key_problems(edited, lambda *done: keys.append(done)) == []
    assert files == [(done, 40) for done in range(1, 41)]
    assert keys == [(40, 40)]
