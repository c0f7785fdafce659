"""Routing by the question with its subject masked: edits of different subjects may ask the same."""

from __future__ import annotations

import json
from contextlib import suppress

import pytest
import torch
from transformers import AutoModelForCausalLM

from scen_cli.data.entries import Entry
from scen_cli.data.records import EditRecord, SourceLine
from scen_cli.data.suites import demo_edits
from scen_cli.editing.editor import Editor
from scen_cli.editing.trace import trace
from scen_cli.editing.verify_base import key_problems
from scen_cli.errors import UsageError
from scen_cli.export.transformers_folder import export_checkpoint
from scen_cli.model.batched_keys import read_segment_keys
from scen_cli.model.ffn import find_layer
from scen_cli.model.keys import KeyConfig
from scen_cli.model.subject_filter import BLOCKED
from scen_cli.project.check import verify
from scen_cli.project.project import Project
from tests.conftest import edit_all, revert

MASK = 99
CONFIG = KeyConfig("last", True, (1,), (3,), (4,), frozenset({9}), (MASK,))
MASKED = {"mask_subject": True, "same_subject": 0.05, "theta": 0.05}  # as on a base that is no toy
FAST = {"expert_steps": 1, "extra_steps": 0, "prompt_augmentations": 0, "require_learned": False}


@pytest.mark.parametrize(
    ("tokens", "masked"),
    [
        ([1, 3, 20, 7, 8, 4], [[1, 3, 20, 99, 4]]),
        ([1, 3, 7, 8, 20, 7, 8, 4], [[1, 3, 99, 20, 99, 4]]),  # named twice
        ([1, 3, 20, 21, 22, 9, 30, 7, 8, 31, 4], [[1, 3, 20, 21, 22, 9, 30, 99, 31, 4], [1, 3, 30, 99, 31, 4]]),
        ([1, 3, 20, 7, 8, 9, 30, 31, 32, 4], []),  # the last sentence asks about something else
        ([1, 3, 7, 8, 4, 6, 3, 20, 21, 22, 4], []),  # so does the last turn
    ],
)
def test_a_subject_is_masked_if_the_last_sentence_names_it(tokens, masked):
    spans = [(n, n + 2, True) for n in range(len(tokens)) if tokens[n : n + 2] == [7, 8]]
    assert CONFIG.masked_segments_of(tokens, spans) == masked


def test_a_mark_inside_a_subject_ends_no_sentence():
    assert CONFIG.masked_segments_of([1, 3, 20, 7, 9, 8, 30, 31, 32, 4], [(3, 6, True)]) == [
        [1, 3, 20, 99, 30, 31, 32, 4]
    ]


def test_parts_that_are_left_out_leave_nothing_behind():
    spans = [(2, 3, True), (4, 5, False), (4, 5, False)]
    assert CONFIG.masked_segments_of([1, 3, 7, 20, 8, 21, 4], spans) == [[1, 3, 99, 20, 21, 4]]


def same_question() -> list:
    """Records of one relation about different subjects, each with a subject that its prompt names."""
    by_wording: dict[str, list] = {}
    for record in demo_edits():
        by_wording.setdefault(record.prompt.replace(str(record.subject), "*"), []).append(record)
    return max(by_wording.values(), key=len)[:4]


@pytest.fixture
def editor(make_editor) -> Editor:
    editor = make_editor("closed-form", **MASKED)
    edit_all(editor, same_question())
    return editor


def test_edits_that_ask_the_same_have_one_key_and_each_answers_about_its_subject(editor):
    records = same_question()
    neurons = torch.from_numpy(editor.project.w_merge().neurons)
    assert torch.allclose(neurons, neurons[:1].expand_as(neurons), atol=1e-5)
    answers = editor.answer([record.prompt for record in records])
    assert answers.edits == [1, 2, 3, 4]
    assert answers.texts == [record.target for record in records]
    activations = editor.route([records[0].prompt]).activations[0]
    assert activations[0] > 0.99
    assert activations[1:].tolist() == [BLOCKED] * 3
    assert verify(editor.project, deep=True) == []


def test_an_edit_does_not_answer_a_sentence_about_something_else(editor):
    first, second = same_question()[:2]
    asked = [
        f"Thank you for that. {first.prompt}",
        f"{first.prompt} How are you today?",
        f"{first.subject}. {second.prompt}",
    ]
    assert editor.answer(asked, max_new_tokens=1).edits == [1, None, 2]


def test_theta_comes_from_other_questions_of_the_bank(editor, make_editor):
    rare = make_editor("closed-form", **{**MASKED, "same_subject": 0.01})
    assert 0 < editor.recipe.theta < rare.recipe.theta < 1
    assert editor.project.ledger.theta() == pytest.approx(editor.recipe.theta)


def test_a_revert_is_exact_among_edits_of_one_subject(make_editor):
    first = same_question()[0]
    others = [first.model_copy(update={"prompt": f"{text} {first.subject}?"}) for text in ("Who met", "How tall is")]
    reverted, never = (make_editor("closed-form", **MASKED, **FAST) for _ in range(2))
    edit_all(reverted, [others[0], first, others[1]])
    edit_all(never, [first, others[1]])
    revert(reverted.project, 1)
    for one, other in ((2, 1), (3, 2)):
        assert reverted.project.find(one).bias == never.project.find(other).bias
    prompts = [first.prompt, *(record.prompt for record in others)]
    renumbered = [edit and edit - 1 for edit in reverted.route(prompts).edits]
    assert renumbered == [edit or edit for edit in never.route(prompts).edits]
    assert reverted.project.ledger.theta() == never.project.ledger.theta()


def test_an_export_routes_as_the_project_does(editor, tmp_path):
    records = same_question()
    prompts = [
        text for record in records for text in (record.prompt, *record.rephrases[:2], f"Who is {record.subject}?")
    ]
    wanted = editor.route(prompts)
    ids, mask = editor.encode(prompts)
    editor.detach()
    export_checkpoint(editor, tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", trust_remote_code=True)
    route = model._patch.route(model, ids, mask)
    edits = [None if row < 0 else model.config.scen["edits"][row] for row in route.choice.tolist()]
    assert edits == wanted.edits
    assert torch.allclose(route.activations, wanted.activations, atol=1e-4)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["scen"]["key_config"]["mask"]


def test_the_trace_shows_what_each_subjects_edits_see(editor):
    record = same_question()[1]
    segments = trace(editor, record.prompt).segments
    assert [segment.edit for segment in segments] == [None, 2]
    assert " it" in segments[1].text
    assert record.subject not in segments[1].text


def test_another_process_sees_the_same_routing(editor):
    prompts = [record.prompt for record in same_question()]
    again = Editor(Project(editor.project.folder), base=editor.base)
    assert again.route(prompts).edits == editor.route(prompts).edits == [1, 2, 3, 4]
    again.detach()


@pytest.mark.parametrize(("module", "key_layer"), [("up", None), ("attn", None), ("down", 1), ("down", 3)])
def test_keys_may_be_read_at_another_module_or_layer_than_the_experts_are(make_editor, module, key_layer):
    editor = make_editor("closed-form", target_module=module, key_layer=key_layer, **MASKED, **FAST)
    edit_all(editor, same_question()[:2])
    prompts = [same_question()[1].prompt, "How are you?", f"Hello. {same_question()[0].prompt}"]
    assert editor.answer(prompts, max_new_tokens=2).edits == [2, None, 1]
    assert [editor.answer([prompt], max_new_tokens=2).edits[0] for prompt in prompts] == [2, None, 1]
    assert key_problems(editor) == []


def test_keys_of_another_layer_are_those_of_its_projection(make_editor):
    editor = make_editor("closed-form", key_layer=3, **MASKED, **FAST)
    prompt = same_question()[0].prompt
    tokens = [editor.template.prompt_ids(prompt)]
    there, here = (
        read_segment_keys(editor.base, find_layer(editor.model, layer), tokens, KeyConfig())[0] for layer in (3, 2)
    )
    assert torch.equal(editor.keys([prompt]), there)
    assert not torch.allclose(there, here)


def test_an_edit_without_a_subject_stands_beside_one_with_a_subject(make_editor):
    editor = make_editor("closed-form", **MASKED, **FAST)
    named, nameless = demo_edits()[0], demo_edits()[5].model_copy(update={"subject": None})
    edit_all(editor, [named, nameless])
    assert editor.route([named.prompt, nameless.prompt, "How are you?"]).edits == [1, 2, None]


def test_verify_compares_masked_keys(editor):
    assert key_problems(editor) == []


@pytest.mark.parametrize("named_first", [True, False])
def test_an_edit_without_a_subject_cannot_lose_its_prompt_to_one_with_a_subject(make_editor, named_first):
    editor = make_editor("closed-form", **MASKED, **FAST)
    named = demo_edits()[0]
    nameless = named.model_copy(update={"prompt": named.rephrases[0], "subject": None, "target": "Chad"})
    first, second = (named, nameless) if named_first else (nameless, named)
    edit_all(editor, [first])
    with suppress(UsageError):  # it may be refused, but it may not lose its prompt, or take the other's
        edit_all(editor, [second])
    active = editor.project.ledger.edits("active")
    assert editor.route([edit.prompt for edit in active]).edits == [edit.id for edit in active]


@pytest.mark.parametrize("spellings", [("Zürich-West", "zurich west"), ("zurich west", "Zürich-West")])
def test_one_subject_in_two_spellings_is_one_subject(make_editor, spellings):
    editor = make_editor("closed-form", **MASKED, **FAST)
    first, second = (EditRecord(prompt=f"Where is {name}?", target="Peru", subject=name) for name in spellings)
    edit_all(editor, [first])
    with pytest.raises(UsageError, match="collides with edit 1"):
        edit_all(editor, [second])


def test_edits_that_share_an_expert_have_no_subject_of_their_own(make_editor):
    editor = make_editor("closed-form", edits_per_expert=2, **MASKED, **FAST)
    records = demo_edits()[:4]
    with editor.project.writing():
        plan = editor.plan([Entry(SourceLine("test", n), record) for n, record in enumerate(records, 1)])
        list(editor.train(plan))
    assert [edit.subject_names for edit in editor.project.ledger.edits()] == [()] * 4
    assert editor.route([record.prompt for record in records]).edits == [1, 1, 3, 3]
    assert key_problems(editor) == []


@pytest.mark.parametrize("rate", [0.001, 0.5])
def test_theta_stays_between_its_bounds_at_any_rate(make_editor, rate):
    editor = make_editor("closed-form", **{**MASKED, "same_subject": rate})
    assert 0.05 <= Project(editor.project.folder).ledger.theta() <= 0.9


def test_a_theta_that_is_set_is_a_lower_bound(make_editor):
    assert make_editor("closed-form", **{**MASKED, "theta": 0.6}).recipe.theta == 0.6
