"""An edit whose file is damaged: the base answers for it, loudly; the others go on."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pytest

from scen_cli.data.suites import demo_edits
from scen_cli.editing.editor import Editor
from scen_cli.editing.verify_base import key_problems
from scen_cli.errors import DamageFound, Quarantined
from scen_cli.export.transformers_folder import export_checkpoint
from scen_cli.project.project import Project
from scen_cli.project.tensor_files import EditTensors, LowRankArrays, write_edit
from tests.conftest import edit_all, take_back

RECORDS = demo_edits()[:3]
PROMPTS = [record.prompt for record in RECORDS]


@pytest.fixture(params=[{}, {"expert": "low-rank", "rank": 4, "extra_steps": 30}], ids=["full", "low-rank"])
def editor(request, make_editor):
    editor = make_editor("key", **request.param)
    edit_all(editor, RECORDS)
    editor.detach()
    return editor


def flip(path, place=-1):
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def test_the_base_answers_for_a_damaged_expert_and_the_others_work(editor):
    base = editor.answer(PROMPTS, patched=False).texts
    flip(editor.project.folder / editor.project.find(2).file)
    editor.detach()
    with pytest.warns(
        Quarantined, match=r"edit 2 is damaged and quarantined, the base answers for it: `edits/000002-.*` is not what"
    ):
        answers = editor.answer(PROMPTS)
    assert answers.edits == [1, None, 3]
    assert answers.texts == [RECORDS[0].target, base[1], RECORDS[2].target]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert editor.answer(PROMPTS).texts == answers.texts  # it was told once


@pytest.mark.parametrize("harm", ["gone", "folder", "link", "pickle"])
def test_whatever_is_in_the_files_place(editor, harm, tmp_path):
    path = editor.project.folder / editor.project.find(2).file
    content = path.read_bytes()
    path.unlink()
    if harm == "folder":
        path.mkdir()
    elif harm == "link":
        (tmp_path / "elsewhere").write_bytes(content)
        path.symlink_to(tmp_path / "elsewhere")
    elif harm == "pickle":
        path.write_bytes(b"\x80\x04\x95" + bytes(len(content) - 3))
    with pytest.warns(Quarantined, match="edit 2"):
        assert editor.answer(PROMPTS).texts[::2] == [RECORDS[0].target, RECORDS[2].target]


def test_a_project_without_its_cache_opens_beside_a_damaged_file(editor, demo_base):
    """Then the neuron is unknown too: the edit calls nothing."""
    (editor.project.folder / "merged.safetensors").unlink()
    (editor.project.folder / editor.project.find(2).file).write_bytes(b"")
    opened = Editor(Project(editor.project.folder), base=demo_base)
    with pytest.warns(Quarantined, match="edit 2 is damaged and quarantined, it calls nothing"):
        answers = opened.answer(PROMPTS)
    assert answers.edits[::2] == [1, 3]
    assert answers.edits[1] != 2
    with pytest.raises(DamageFound, match="edit 2 is active, but its file is damaged"):
        opened.answer(PROMPTS[:1], edits=[2])
    opened.detach()


def test_nothing_is_let_in_beside_an_edit_that_cannot_be_read(editor, demo_base):
    """A new edit must leave every other its prompt: of a lost key that cannot be known."""
    (editor.project.folder / "merged.safetensors").unlink()
    (editor.project.folder / editor.project.find(2).file).write_bytes(b"")
    opened = Editor(Project(editor.project.folder), base=demo_base)
    with opened.project.writing(), pytest.raises(DamageFound, match="000002"):
        opened.edit(demo_edits()[5])
    with opened.project.writing():
        take_back(opened.project, 2)
        assert opened.edit(demo_edits()[5]).state == "active"
    opened.detach()


def test_a_damaged_project_says_so_before_anything_is_trained(editor, scen):
    (editor.project.folder / "merged.safetensors").unlink()
    (editor.project.folder / editor.project.find(2).file).write_bytes(b"")
    result = scen("edit", "--suite", "demo", "--first", "6", "--dir", editor.project.folder, "--json", code=12)
    assert "edits/000002-" in result.stderr
    assert len(editor.project.ledger.edits()) == 3


def test_nothing_damaged_is_exported(editor, tmp_path):
    flip(editor.project.folder / editor.project.find(2).file)
    with pytest.warns(Quarantined), pytest.raises(DamageFound, match="nothing was exported"):
        export_checkpoint(editor, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_key_that_was_changed_beside_its_expert_is_noticed_by_who_edits(make_editor, demo_base):
    editor = make_editor("key")
    edit_all(editor, RECORDS)
    edit = editor.project.find(2)
    flip(editor.project.folder / edit.file, (editor.project.folder / edit.file).read_bytes().index(key_of(editor, 2)))
    with pytest.raises(DamageFound, match="its neuron or key has changed"):
        Editor(Project(editor.project.folder), base=demo_base).index.load()


def key_of(editor, edit_id):
    return editor.project.keys(editor.project.find(edit_id))[0].tobytes()


def test_a_file_that_another_project_wrote_is_refused_although_it_is_whole(make_editor):
    """Even by who can write the ledger's sums too: widths and ranks are checked."""
    editor = make_editor("key", expert="low-rank", rank=4, extra_steps=30)
    edit_all(editor, RECORDS)
    editor.detach()
    ones = LowRankArrays(np.ones((4, 9), np.float16), np.ones((5, 4), np.float16))
    index = editor.project.files.index(editor.project.find(2))
    stored = write_edit(editor.project.folder, 2, EditTensors(ones, index["neuron"], index["key"]))
    row = {"file": stored.name, "sha256": stored.sha256, "size": stored.size, "index_sha256": stored.index_sha256}
    editor.project.ledger.db["edits"].update(2, row)
    with pytest.warns(Quarantined, match="different ranks, or the base has another width"):
        assert editor.answer(PROMPTS).edits == [1, None, 3]


def test_the_commands_say_so(editor, scen):
    folder = editor.project.folder
    flip(folder / editor.project.find(2).file)
    asked = scen("ask", PROMPTS[1], "--dir", folder, "--device", "cpu", "--json")
    told = json.loads(asked.stdout)
    assert (told["edit"], told["patched"]) == (None, told["base"])
    assert "edit 2 is damaged and quarantined" in asked.stderr
    assert json.loads(scen("ask", PROMPTS[0], "--dir", folder, "--json").stdout)["edit"] == 1
    shown = scen("verify", "--behaviour", "--dir", folder, code=12)
    assert "edit 2: its prompt calls no edit" in shown.stdout
    assert "content of edit 2 is not what was committed" in scen("verify", "--deep", "--dir", folder, code=12).stdout
    scen("revert", "2", "--dir", folder)
    assert scen("verify", "--behaviour", "--dir", folder)


def test_a_key_that_the_base_does_not_give_is_named(make_editor):
    """By `scen verify --deep`, although file and ledger agree: then the base is another, or read otherwise."""
    editor = make_editor("key")
    edit_all(editor, RECORDS)
    assert key_problems(editor) == []
    index = editor.project.files.index(editor.project.find(2))
    stored = write_edit(
        editor.project.folder, 2, EditTensors(editor.project.expert(2), index["neuron"], index["key"] * 1.001)
    )
    row = {"file": stored.name, "sha256": stored.sha256, "size": stored.size, "index_sha256": stored.index_sha256}
    editor.project.ledger.db["edits"].update(2, row)
    assert [problem.edit for problem in key_problems(editor)] == [2]
