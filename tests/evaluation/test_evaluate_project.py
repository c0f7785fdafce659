"""`evaluate`: the paper's figures, which prompts are scored, and what failed edits count for."""

from __future__ import annotations

from dataclasses import replace

import pytest

from scen_cli.data.records import EditRecord
from scen_cli.data.suites import Suite, demo_edits, load_suite
from scen_cli.demo.world import right_facts
from scen_cli.editing.create_project import new_project
from scen_cli.editing.editor import Editor
from scen_cli.errors import UsageError
from scen_cli.evaluation.evaluate_project import evaluate
from scen_cli.model.base import load_base
from tests.conftest import edit_all, revert
from tests.model.tiny import DENSE, save_tiny


def test_figures_of_the_demo_suite_after_40_edits(demo_evaluation):
    result = demo_evaluation
    assert (result.edits, result.not_learned) == (40, 0)
    assert result.figures["reliability"].patched.share == 1.0
    assert result.figures["reliability"].base.share == 0.0
    assert result.figures["generality"].patched.total == 120
    assert result.figures["generality"].patched.share > 0.85
    assert result.figures["generality-given-expert"].patched.right >= result.figures["generality"].patched.right
    assert result.figures["locality"].patched.total == len(load_suite("demo").locality)
    assert result.figures["locality"].patched.share > 0.95
    assert result.figures["locality"].base is result.figures["locality"].routed is None
    assert result.figures["token-accuracy"].base.share > 0.3  # teacher-forced: the base generates none of them


def test_each_prompt_is_asked_once_and_in_large_batches(edited, monkeypatch, tmp_path):
    """`benchmarks/batched_evaluation.py` measures what this saves."""
    monkeypatch.setenv("SCEN_CACHE", str(tmp_path))  # no stored answers
    rows, progress = [], []
    generate = edited.model.generate

    def counting(*arguments, **options):
        rows.append(len(options["input_ids"]))
        return generate(*arguments, **options)

    monkeypatch.setattr(edited.model, "generate", counting)
    suite = load_suite("demo")
    suite = replace(suite, locality=suite.locality[:200])
    samples = evaluate(edited, suite, quick=True, progress=lambda done, total: progress.append((done, total))).samples
    assert len(samples) == 360
    prompts = {sample.prompt for sample in samples}  # each is routed once; answers are counted too
    assert progress[-1] == (len(prompts) + sum(rows), len(prompts) + sum(rows))
    assert sum(rows) < 2 * len(samples)  # once by the base, and once by an expert if it is routed
    assert len(rows) < sum(rows) / 40


def test_locality_falls_if_unedited_prompts_activate_edits(make_editor):
    editor = make_editor("key", theta=0.01)  # so low that every prompt activates an edit
    records = demo_edits()[:3]
    edit_all(editor, records)
    suite = Suite("s", records, locality=[record.prompt for record in demo_edits()[10:40]])
    result = evaluate(editor, suite)
    assert result.figures["locality"].fired.share > 0.9
    assert result.figures["locality"].patched.share < 1.0
    assert result.figures["reliability"].patched.right == 3


def test_edits_that_are_not_learned_count_as_wrong(make_editor):
    records = demo_edits()[:3]
    suite = Suite("s", records, locality=[record.prompt for record in demo_edits()[10:40]])
    editor = make_editor("key", expert_steps=1)
    assert {edit.state for edit in edit_all(editor, records)} == {"failed"}
    result = evaluate(editor, suite)
    assert (result.edits, result.not_learned) == (3, 3)
    assert result.figures["reliability"].patched.right == 0
    assert result.figures["generality-given-expert"].patched.right == 0
    assert result.figures["generality-given-expert"].patched.total == 9


def test_locality_scores_no_more_prompts_than_the_paper(edited, monkeypatch):
    monkeypatch.setattr("scen_cli.evaluation.evaluation.LOCALITY_PROMPTS", 7)
    found = evaluate(edited, Suite("s", demo_edits()[:2], load_suite("demo").locality), quick=True)
    assert [sample.prompt for sample in found.samples[-7:]] == load_suite("demo").locality[:7]
    assert found.figures["locality"].patched.total == 7


def test_unedited_records_are_locality_prompts_if_the_suite_has_none(edited):
    result = evaluate(edited, Suite("s", demo_edits()[:100], locality=[]), quick=True)
    assert result.edits == 40
    assert result.figures["locality"].patched.total == 60


def test_reverted_and_superseded_records_are_left_out_and_are_no_locality_prompts(make_editor):
    editor = make_editor()
    records = demo_edits()[:4]
    edit_all(editor, records)
    revert(editor.project, 1)
    edit_all(editor, [records[1].model_copy(update={"target": "Cuba"})])
    result = evaluate(editor, Suite("s", demo_edits()[:6], locality=[]), quick=True)
    assert (result.edits, result.left_out) == (2, 2)
    assert result.figures["locality"].patched.total == 2


def test_a_suite_without_any_edit_of_the_project_is_refused(edited):
    with pytest.raises(UsageError, match="none of the 5 edits"):
        evaluate(edited, Suite("s", demo_edits()[100:105], []))


LONG = "Who is it that " + "asks and " * 60 + "answers?"


def fill(editor, room):
    """A prompt that leaves `room` tokens of the demo base's context."""
    words = ["Who"]
    while len(editor.template.prompt_ids(" ".join(words))) < editor.context - room:
        words.append("a")
    return " ".join(words)


def test_a_prompt_with_little_room_shortens_no_other_answer(edited):
    prompts = [record.prompt for record in demo_edits()[:10]]
    alone = edited.answer(prompts)
    together = edited.answer([*prompts, fill(edited, 1), fill(edited, 3)])
    assert together.texts[:10] == alone.texts == [record.target for record in demo_edits()[:10]]
    assert [len(tokens) <= 3 for tokens in together.tokens[10:]] == [True, True]
    longer = edited.answer([*prompts, fill(edited, 2)], max_new_tokens=40)  # more than the long prompt has room for
    assert longer.texts[:10] == alone.texts
    record = demo_edits()[0].model_copy(update={"rephrases": (fill(edited, 1),)})
    figures = evaluate(edited, Suite("s", [record, *demo_edits()[1:10]], [fill(edited, 2)]), quick=True).figures
    assert figures["reliability"].patched.right == 10


def test_prompts_that_do_not_fit_are_counted_and_not_asked(edited):
    record = demo_edits()[0].model_copy(update={"rephrases": (LONG * 9, demo_edits()[0].rephrases[0])})
    found = evaluate(edited, Suite("s", [record], [LONG * 9]), quick=True)
    assert (found.too_long, found.figures["generality"].patched.total) == (1, 1)
    assert found.figures["locality"].patched.total == 0


def test_base_and_experts_stop_at_the_same_length(tmp_path):
    """This base never generates its end token. Experts that equal the base change nothing, however long a target is."""
    base = load_base(str(save_tiny(tmp_path / "base", *DENSE["llama"], seed=5)), device="cpu")
    changes = {"expert_lr": 1e-12, "expert_steps": 1, "theta": 0.01, "require_learned": "false"}
    project = new_project(tmp_path / "p", str(tmp_path / "base"), layer=1, recipe="key", changes=changes, base=base)
    editor = Editor(project, base=base)
    short = EditRecord(prompt="Where was Ada born?", target="Riga")
    edit_all(editor, [short, EditRecord(prompt="Who is Otto?", target="word " * 25)])
    assert editor.longest_answer() > 60
    prompts = [f"Where is {name}?" for name in "ABCDEFGH"]
    found = evaluate(editor, Suite("s", [short], prompts)).figures
    assert found["locality"].fired.share == 1.0
    assert found["locality"].patched.share == 1.0
    assert found["drift-changed"].patched.right == 0
    assert {len(tokens) for tokens in editor.answer(prompts, patched=False).tokens} != {50}
    editor.detach()


def test_a_failed_edit_is_wrong_even_if_the_base_answers_its_target(make_editor):
    editor = make_editor("key", expert_steps=1)
    known = right_facts()[0]
    record = EditRecord(prompt=known.phrasings[0], target=known.answer, rephrases=known.phrasings[1:3])
    editor.recipe = editor.recipe.model_copy(update={"expert_lr": 1e30})
    [edit] = edit_all(editor, [record])
    assert edit.state == "failed"
    found = evaluate(editor, Suite("s", [record], []))
    for name in ("reliability", "generality", "robustness", "generality-given-expert"):
        assert found.figures[name].patched.right == 0
    assert found.figures["reliability"].base.right == 1
    assert found.curves["theta"][0]["reliability"]["right"] == found.curves["retention"][0]["reliability"]["right"] == 0


def test_a_failed_edit_makes_earlier_figures_old(make_editor):
    editor = make_editor("key")
    edit_all(editor, demo_edits()[:1])
    then = evaluate(editor, Suite("s", demo_edits()[:2], []), quick=True).last_change
    editor.recipe = editor.recipe.model_copy(update={"expert_steps": 1})
    [edit] = edit_all(editor, demo_edits()[1:2])
    assert edit.state == "failed"
    assert editor.project.ledger.last_change() > then


def test_a_rephrase_of_an_edit_that_is_not_in_the_suite_is_no_locality_prompt(make_editor):
    editor = make_editor("key")
    edit_all(editor, demo_edits()[:2])
    prompts = [demo_edits()[1].rephrases[0], right_facts()[0].phrasings[0]]
    found = evaluate(editor, Suite("s", demo_edits()[:1], prompts), quick=True)
    assert found.figures["locality"].patched.total == 1


def test_quick_gives_the_same_figures_without_answers_that_cannot_have_changed(edited):
    suite = Suite("s", demo_edits()[:10], load_suite("demo").locality[:40])
    quick, full = evaluate(edited, suite, quick=True), evaluate(edited, suite)
    assert {name: full.figures[name] for name in quick.figures} == quick.figures
    untouched = [sample for sample in quick.samples if sample.role == "locality" and sample.routed_edit is None]
    assert len(untouched) > 20
    assert {(sample.base, sample.patched, sample.right) for sample in untouched} == {("", "", True)}
    assert all(sample.base and sample.patched for sample in quick.samples if sample.role == "reliability")
