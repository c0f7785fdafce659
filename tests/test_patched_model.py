"""Answering while others change the project, with little memory, and with odd prompts and tokenizers."""

from __future__ import annotations

import pytest
import torch

from scen_cli.data.suites import demo_edits
from scen_cli.editor import Editor
from scen_cli.errors import UsageError
from scen_cli.model.base import load_base
from scen_cli.model.patch import Patch
from scen_cli.patched_model import BATCH, batches
from scen_cli.project.project import Project
from scen_cli.project_setup import new_project
from tests.conftest import edit_all


def test_a_revert_between_routing_and_generating_hands_nobody_anothers_expert(make_editor, monkeypatch):
    """Another process reverts edit 1 just after the prompts were routed: rows of W_merge move up."""
    editor = make_editor()
    records = demo_edits()[:6]
    edit_all(editor, records)
    other, route = Project(editor.project.folder), Patch.route

    def route_then_lose_edit_1(self, *arguments):
        decided = route(self, *arguments)
        if other.find(1).state == "active":
            other.revert(1)
        return decided

    monkeypatch.setattr(Patch, "route", route_then_lose_edit_1)
    answers = editor.answer([record.prompt for record in records])
    assert answers.texts == [record.target for record in records]
    assert answers.edits == [1, 2, 3, 4, 5, 6]
    again = editor.answer([record.prompt for record in records])
    assert again.edits == [None, 2, 3, 4, 5, 6]
    with pytest.raises(UsageError, match="edit 1 is not in force"):
        editor.generate(*editor.encode([records[0].prompt]), edits=[1])


def test_sequences_under_way_keep_a_patch_that_is_detached(make_editor):
    editor = make_editor()
    edit_all(editor, demo_edits()[:1])
    ids, mask = editor.encode([demo_edits()[0].prompt])
    hooks = len(editor.edited.down_proj._forward_hooks)  # other tests' projects may be on this base
    patch = editor.patch()
    with patch.using(patch.rows_of([1])):
        before = editor.model(input_ids=ids, attention_mask=mask).logits
        editor.detach()
        assert torch.equal(editor.model(input_ids=ids, attention_mask=mask).logits, before)
    assert not torch.equal(editor.model(input_ids=ids, attention_mask=mask).logits, before)
    assert len(editor.edited.down_proj._forward_hooks) == hooks


def test_batches_call_no_more_experts_than_fit():
    edits = [3, None, 1, 2, 3, None, 1, 4, 2, 5] * 20
    made = list(batches(edits, experts_at_once=2))
    assert sorted(row for batch in made for row in batch) == list(range(200))
    for batch in made:
        assert len(batch) <= BATCH
        assert len({edits[row] for row in batch} - {None}) <= 2
    assert list(batches([], 2)) == []


def test_each_expert_is_read_once_however_little_memory_there_is(make_editor, monkeypatch):
    monkeypatch.setattr("scen_cli.patched_model.CACHE_BYTES", 3 * 96 * 768 * 4)
    editor, reads = make_editor(), []
    records = demo_edits()[:10]
    edit_all(editor, records)
    expert = editor.project.expert
    monkeypatch.setattr(editor.project, "expert", lambda edit: (reads.append(edit), expert(edit))[1])
    prompts = [record.prompt for record in records] + [record.rephrases[0] for record in records]
    answers = editor.answer(prompts)
    assert answers.texts[:10] == [record.target for record in records]
    assert editor.patch().experts_at_once == 3
    assert len(reads) == len(set(reads))


@pytest.mark.parametrize("prompt", ["Where " * 300])
def test_a_prompt_past_the_context_is_a_users_mistake(edited, prompt):
    with pytest.raises(UsageError, match="the base's context is 1 to 256"):
        edited.answer([prompt])


def test_a_pad_token_without_a_row_of_its_own_is_not_used(tmp_path):
    base = load_base("demo", device="cpu")
    base.tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    assert base.tokenizer.pad_token_id == base.model.config.vocab_size
    editor = Editor(new_project(tmp_path / "p", "demo", recipe="key", base=base), base=base)
    records = demo_edits()[:4]
    edit_all(editor, records)
    assert editor.answer([record.prompt for record in records]).texts == [record.target for record in records]


def test_a_damaged_neuron_silences_only_itself(edited):
    from scen_cli.model.patch import BASE, choose

    activations = torch.tensor([[0.9, torch.nan], [torch.nan, 0.1]])
    assert choose(activations, 0.65).tolist() == [0, BASE]
