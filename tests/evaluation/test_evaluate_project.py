"""Figures: intervals, and an evaluation that knows right from wrong."""

from __future__ import annotations

import pytest

from scen_cli.data.records import EditRecord
from scen_cli.data.suites import Suite, demo_edits, load_suite
from scen_cli.demo.facts import right_facts
from scen_cli.editing.create_project import new_project
from scen_cli.editing.editor import Editor
from scen_cli.errors import UsageError
from scen_cli.evaluation.evaluate_project import evaluate
from scen_cli.evaluation.metrics import Share, wilson
from scen_cli.evaluation.samples import scored_edits
from scen_cli.model.base import load_base
from tests.conftest import edit_all, take_back
from tests.model.tiny import DENSE, save_tiny


def test_wilson_against_published_values():
    """Newcombe 1998, table I: 81/263, 15/148 and 0/20."""
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson(15, 148) == pytest.approx((0.0624, 0.1605), abs=5e-5)
    assert wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)


def test_a_share_of_nothing_has_no_figure():
    assert Share.of([]).share is None
    assert str(Share.of([])) == "-"
    assert str(Share.of([True, False])) == "50.0 % (1/2; 9.5 to 90.5)"


def test_the_demo_suite_on_forty_edits(edited):
    result = evaluate(edited, load_suite("demo"))
    assert (result.edits, result.not_learned) == (40, 0)
    assert result.figures["reliability"].patched.share == 1.0
    assert result.figures["reliability"].base.share == 0.0
    assert result.figures["generality"].patched.total == 120
    assert result.figures["generality"].patched.share > 0.85
    assert result.figures["generality-given-expert"].patched.right >= result.figures["generality"].patched.right
    assert result.figures["locality"].patched.total == len(load_suite("demo").locality)
    assert result.figures["locality"].patched.share > 0.95
    assert result.figures["locality"].base is result.figures["locality"].routed is None
    assert result.figures["token-accuracy"].base.share > 0.3  # teacher forcing flatters: the base answers none of them


def test_a_thousand_prompts_are_asked_in_few_batches_and_each_once(edited, monkeypatch):
    """`benchmarks/batched_evaluation.py` says what that saves; that the answers are the same,
    `tests/editing/test_patched_model.py` and `tests/model/test_patch.py` hold."""
    rows = []
    generate = edited.model.generate

    def counting(*arguments, **options):
        rows.append(len(options["input_ids"]))
        return generate(*arguments, **options)

    monkeypatch.setattr(edited.model, "generate", counting)
    told = []
    suite = load_suite("demo")
    samples = evaluate(edited, suite, quick=True, tell=told.append).samples
    assert len(samples) == 755
    assert told[-1] == sum(rows) < 2 * len(samples)  # by an expert, and by the base: never twice
    assert len(rows) < sum(rows) / 40


def test_figures_fall_where_the_model_is_wrong(make_editor):
    """A wrong target, an unlearned edit and a disturbed prompt each cost what they should."""
    editor = make_editor("key", theta=0.01)  # so low that every prompt is claimed by some edit
    records = demo_edits()[:3]
    edit_all(editor, records)
    suite = Suite("s", records, locality=[record.prompt for record in demo_edits()[10:40]])
    result = evaluate(editor, suite)
    assert result.figures["locality"].fired.share > 0.9
    assert result.figures["locality"].patched.share < 1.0
    assert result.figures["reliability"].patched.right == 3

    hard = make_editor("key", expert_steps=1)
    rows = edit_all(hard, records)
    assert {row.state for row in rows} == {"failed"}
    result = evaluate(hard, suite)
    assert (result.edits, result.not_learned) == (3, 3)
    assert result.figures["reliability"].patched.right == 0
    assert result.figures["generality-given-expert"].patched.right == 0
    assert result.figures["generality-given-expert"].patched.total == 9


def test_locality_asks_no_more_prompts_than_the_paper(edited, monkeypatch):
    monkeypatch.setattr("scen_cli.evaluation.evaluate_project.LOCALITY_PROMPTS", 7)
    found = evaluate(edited, Suite("s", demo_edits()[:2], load_suite("demo").locality), quick=True)
    assert [sample.prompt for sample in found.samples[-7:]] == load_suite("demo").locality[:7]
    assert found.figures["locality"].patched.total == 7


def test_unedited_records_serve_as_locality_where_a_suite_has_none(edited):
    result = evaluate(edited, Suite("s", demo_edits()[:100], locality=[]))
    assert result.edits == 40
    assert result.figures["locality"].patched.total == 60


def test_records_taken_back_are_counted_as_left_out_and_are_no_locality_prompts(make_editor):
    editor = make_editor()
    records = demo_edits()[:4]
    edit_all(editor, records)
    take_back(editor.project, 1)
    edit_all(editor, [records[1].model_copy(update={"target": "Cuba"})])
    result = evaluate(editor, Suite("s", demo_edits()[:6], locality=[]))
    assert (result.edits, result.left_out) == (2, 2)
    assert result.figures["locality"].patched.total == 2


def test_a_suite_none_of_whose_edits_was_made(edited):
    with pytest.raises(UsageError, match="none of the 5 edits"):
        evaluate(edited, Suite("s", demo_edits()[100:105], []))


LONG = "Who is it that " + "asks and " * 60 + "answers?"


def fill(editor, room):
    """A prompt that leaves so many tokens of the demo base's context."""
    words = ["Who"]
    while len(editor.template.prompt_ids(" ".join(words))) < editor.context - room:
        words.append("a")
    return " ".join(words)


def test_a_prompt_with_little_room_shortens_nobody_elses_answer(edited):
    prompts = [record.prompt for record in demo_edits()[:10]]
    alone = edited.answer(prompts)
    together = edited.answer([*prompts, fill(edited, 1), fill(edited, 3)])
    assert together.texts[:10] == alone.texts == [record.target for record in demo_edits()[:10]]
    assert [len(tokens) <= 3 for tokens in together.tokens[10:]] == [True, True]
    given = edited.answer([*prompts, fill(edited, 2)], max_new_tokens=40)  # more than one of them has room for
    assert given.texts[:10] == alone.texts
    record = demo_edits()[0].model_copy(update={"rephrases": (fill(edited, 1),)})
    figures = evaluate(edited, Suite("s", [record, *demo_edits()[1:10]], [fill(edited, 2)]), quick=True).figures
    assert figures["reliability"].patched.right == 10


def test_prompts_that_do_not_fit_are_counted_not_asked(edited):
    record = demo_edits()[0].model_copy(update={"rephrases": (LONG * 9, demo_edits()[0].rephrases[0])})
    found = evaluate(edited, Suite("s", [record], [LONG * 9]), quick=True)
    assert (found.too_long, found.figures["generality"].patched.total) == (1, 1)
    assert found.figures["locality"].patched.total == 0


def test_base_and_experts_stop_at_the_same_length(tmp_path):
    """A base that never stops by itself: experts equal to the base change nothing, however long a target is."""
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


def test_failed_edits_are_wrong_whatever_is_answered(make_editor):
    """Even where the base gives the target by itself: nothing was edited."""
    editor = make_editor("key", expert_steps=1)
    known = right_facts()[0]
    record = EditRecord(prompt=known.phrasings[0], target=known.answer, rephrases=known.phrasings[1:3])
    broken = editor.recipe.model_copy(update={"expert_lr": 1e30})
    editor.recipe = broken
    [edit] = edit_all(editor, [record])
    assert edit.state == "failed"
    found = evaluate(editor, Suite("s", [record], []))
    for name in ("reliability", "generality", "robustness", "generality-given-expert"):
        assert found.figures[name].patched.right == 0
    assert found.figures["reliability"].base.right == 1
    assert found.curves["theta"][0]["reliability"]["right"] == found.curves["retention"][0]["reliability"]["right"] == 0


def test_which_of_several_tries_is_scored(make_editor):
    first = demo_edits()[0]
    other = first.model_copy(update={"target": "Cuba"})
    hasty, patient = make_editor("key", expert_steps=1), None
    edit_all(hasty, [first])  # fails
    patient = Editor(hasty.project, base=hasty.base)
    patient.recipe = hasty.recipe.model_copy(update={"expert_steps": 10})

    def scored(*records):
        edits = hasty.project.ledger.edits()
        active = {edit.id for edit in edits if edit.state == "active"}
        return [(one.edit.id, one.edit.state) for one in scored_edits(edits, active, Suite("s", list(records), []))]

    assert scored(first) == [(1, "failed")]
    edit_all(patient, [first])
    assert scored(first) == [(2, "active")]
    edit_all(patient, [other])  # supersedes it
    assert scored(first, other) == [(3, "active")]  # the first one's old failure does not come back
    edit_all(hasty, [first])  # tried anew, and failed: another target stands
    assert scored(first, other) == [(4, "failed"), (3, "active")]
    edit_all(hasty, [demo_edits()[1]])  # fails
    another = demo_edits()[1].model_copy(update={"target": "Cuba"})
    edit_all(patient, [another])
    assert scored(demo_edits()[1], another) == [(6, "active")]  # given up for another target since


def test_figures_are_old_once_an_edit_has_failed(make_editor):
    editor = make_editor("key")
    edit_all(editor, demo_edits()[:1])
    then = evaluate(editor, Suite("s", demo_edits()[:2], []), quick=True).last_change
    editor.recipe = editor.recipe.model_copy(update={"expert_steps": 1})
    [edit] = edit_all(editor, demo_edits()[1:2])
    assert edit.state == "failed"
    assert editor.project.ledger.last_change() > then
