"""A damaged edit file is quarantined with a warning: the base answers its prompts, and other edits still work."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pytest
import torch

from scen_cli.data.suites import demo_edits
from scen_cli.editing.editor import Editor
from scen_cli.errors import DamageFound, Quarantined
from scen_cli.export.transformers_folder import export_checkpoint
from scen_cli.model.routing import BASE, choose
from scen_cli.project.edit_files import EditTensors, LowRankArrays, write_edit
from scen_cli.project.project import Project
from tests.conftest import edit_all, revert

RECORDS = demo_edits()[:3]
PROMPTS = [record.prompt for record in RECORDS]


@pytest.fixture(params=[{}, {"expert": "low-rank", "rank": 4, "extra_steps": 30}], ids=["full", "low-rank"])
def editor(request, make_editor):
    editor = make_editor("key", **request.param)
    edit_all(editor, RECORDS)
    editor.detach()
    return editor


@pytest.fixture
def key_editor(make_editor):
    """Three edits with full experts."""
    editor = make_editor("key")
    edit_all(editor, RECORDS)
    return editor


def file_of(project, edit_id):
    return project.folder / project.find(edit_id).file


def flip_bit(path, offset=-1):
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)


def without_cache(editor):
    """Empty the file of edit 2, and remove W_merge, which holds a copy of its neuron."""
    (editor.project.folder / "merged.safetensors").unlink()
    file_of(editor.project, 2).write_bytes(b"")


def test_a_damaged_expert_leaves_its_prompts_to_the_base(editor):
    base = editor.answer(PROMPTS, patched=False).texts
    flip_bit(file_of(editor.project, 2))
    editor.detach()
    with pytest.warns(
        Quarantined, match=r"edit 2 is damaged and quarantined, the base answers for it: `edits/000002-.*` is not what"
    ):
        answers = editor.answer(PROMPTS)
    assert answers.edits == [1, None, 3]
    assert answers.texts == [RECORDS[0].target, base[1], RECORDS[2].target]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert editor.answer(PROMPTS).texts == answers.texts  # the warning is given once


@pytest.mark.parametrize(("seconds", "answered_by"), [(0, 2), (1000, None)])
def test_a_repaired_expert_is_read_again_after_some_seconds(editor, monkeypatch, seconds, answered_by):
    monkeypatch.setattr("scen_cli.editing.project_patch.RETRY_SECONDS", seconds)
    flip_bit(file_of(editor.project, 2))
    with pytest.warns(Quarantined, match="edit 2"):
        assert editor.answer(PROMPTS).edits == [1, None, 3]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert editor.answer(PROMPTS).edits == [1, None, 3]  # it is still damaged: no second warning
        flip_bit(file_of(editor.project, 2))
        answers = editor.answer(PROMPTS)
    assert answers.edits == [1, answered_by, 3]
    assert (answers.texts[1] == RECORDS[1].target) is (answered_by == 2)


@pytest.mark.parametrize(("seconds", "answered_by"), [(0, 2), (1000, None)])
def test_prompts_are_routed_to_a_repaired_edit_after_some_seconds(editor, monkeypatch, seconds, answered_by):
    monkeypatch.setattr("scen_cli.editing.project_patch.RETRY_SECONDS", seconds)
    path = file_of(editor.project, 2)
    content = path.read_bytes()
    without_cache(editor)
    with pytest.warns(Quarantined, match="no prompt is routed to it"):
        assert editor.answer(PROMPTS).edits[1] is None
    path.write_bytes(content)
    assert editor.answer(PROMPTS).edits == [1, answered_by, 3]


@pytest.mark.parametrize("damage", ["missing", "folder", "link", "pickle"])
def test_any_other_file_in_place_of_an_edit_file_is_quarantined(editor, damage, tmp_path):
    path = file_of(editor.project, 2)
    content = path.read_bytes()
    path.unlink()
    if damage == "folder":
        path.mkdir()
    elif damage == "link":
        (tmp_path / "elsewhere").write_bytes(content)
        path.symlink_to(tmp_path / "elsewhere")
    elif damage == "pickle":
        path.write_bytes(b"\x80\x04\x95" + bytes(len(content) - 3))
    with pytest.warns(Quarantined, match="edit 2"):
        assert editor.answer(PROMPTS).texts[::2] == [RECORDS[0].target, RECORDS[2].target]


def test_without_cached_neurons_no_prompt_is_routed_to_a_damaged_edit(editor, demo_base):
    without_cache(editor)
    opened = Editor(Project(editor.project.folder), base=demo_base)
    with pytest.warns(Quarantined, match="edit 2 is damaged and quarantined, no prompt is routed to it"):
        answers = opened.answer(PROMPTS)
    assert answers.edits[::2] == [1, 3]
    assert answers.edits[1] != 2
    with pytest.raises(DamageFound, match="edit 2 is active, but its file is damaged"):
        opened.answer(PROMPTS[:1], edits=[2])
    opened.detach()


def test_no_edit_is_made_beside_an_unreadable_one(editor, demo_base):
    """A new neuron must not be activated by the prompts of other edits: without their keys this cannot be checked."""
    without_cache(editor)
    opened = Editor(Project(editor.project.folder), base=demo_base)
    with opened.project.writing(), pytest.raises(DamageFound, match="000002"):
        opened.edit(demo_edits()[5])
    with opened.project.writing():
        revert(opened.project, 2)
        assert opened.edit(demo_edits()[5]).state == "active"
    opened.detach()


def test_edit_command_reports_damage_before_training(editor, scen):
    without_cache(editor)
    result = scen("edit", "--suite", "demo", "--first", "6", "--dir", editor.project.folder, "--json", code=12)
    assert "edits/000002-" in result.stderr
    assert len(editor.project.ledger.edits()) == 3


def test_a_damaged_project_is_not_exported(editor, tmp_path):
    flip_bit(file_of(editor.project, 2))
    with pytest.warns(Quarantined), pytest.raises(DamageFound, match="nothing was exported"):
        export_checkpoint(editor, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_index_takes_a_changed_key_from_the_cache_or_refuses_it(key_editor, demo_base):
    project = key_editor.project
    key_editor.index.load()
    keys = key_editor.index.keys.all().clone()
    key = project.files.keys(project.find(2))[0].tobytes()
    flip_bit(file_of(project, 2), file_of(project, 2).read_bytes().index(key))
    index = Editor(Project(project.folder), base=demo_base).index
    index.load()
    assert torch.equal(index.keys.all(), keys)
    (project.folder / "merged.safetensors").unlink()
    with pytest.raises(DamageFound, match="its neuron or key has changed"):
        Editor(Project(project.folder), base=demo_base).index.load()


def test_an_expert_of_another_base_is_quarantined(make_editor):
    """Also if its checksums are in the ledger: width and rank are checked."""
    editor = make_editor("key", expert="low-rank", rank=4, extra_steps=30)
    edit_all(editor, RECORDS)
    editor.detach()
    ones = LowRankArrays(np.ones((4, 9), np.float16), np.ones((5, 4), np.float16))
    index = editor.project.files.index(editor.project.find(2))
    stored = write_edit(editor.project.folder, 2, EditTensors(ones, index["neuron"], index["key"]), {})
    row = {"file": stored.file, "sha256": stored.sha256, "size": stored.size, "index_sha256": stored.index_sha256}
    editor.project.ledger.db["edits"].update(2, row)
    with pytest.warns(Quarantined, match="does not have the rank that the ledger records, or the base's width"):
        assert editor.answer(PROMPTS).edits == [1, None, 3]


def test_commands_report_a_damaged_edit(editor, scen):
    at = ("--dir", editor.project.folder)
    flip_bit(file_of(editor.project, 2))
    asked = scen("ask", PROMPTS[1], *at, "--device", "cpu", "--json")
    answer = json.loads(asked.stdout)
    assert (answer["edit"], answer["patched"]) == (None, answer["base"])
    assert "edit 2 is damaged and quarantined" in asked.stderr
    assert json.loads(scen("ask", PROMPTS[0], *at, "--json").stdout)["edit"] == 1
    assert "edit 2: its prompt is routed to no edit" in scen("verify", "--behaviour", *at, code=12).stdout
    assert "content of edit 2 is not what was committed" in scen("verify", "--deep", *at, code=12).stdout
    scen("revert", "2", *at)
    assert scen("verify", "--behaviour", *at)


def test_each_full_expert_is_read_once_however_small_the_cache(make_editor, monkeypatch):
    monkeypatch.setattr("scen_cli.editing.project_patch.CACHE_BYTES", 3 * 96 * 768 * 4)
    editor, reads = make_editor(), []
    records = demo_edits()[:10]
    edit_all(editor, records)
    expert = editor.project.expert
    monkeypatch.setattr(editor.project, "expert", lambda edit: (reads.append(edit), expert(edit))[1])
    prompts = [record.prompt for record in records] + [record.rephrases[0] for record in records]
    answers = editor.answer(prompts)
    assert answers.texts[:10] == [record.target for record in records]
    assert editor.patch().full_at_once == 3
    assert len(reads) == len(set(reads))


def test_an_activation_that_is_nan_is_never_chosen():
    activations = torch.tensor([[0.9, torch.nan], [torch.nan, 0.1]])
    assert choose(activations, 0.65).tolist() == [0, BASE]
