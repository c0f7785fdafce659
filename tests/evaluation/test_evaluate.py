"""Figures: intervals, and an evaluation that knows right from wrong."""

from __future__ import annotations

import pytest

from scen_cli.data.suites import Suite, demo_edits, load_suite
from scen_cli.errors import UsageError
from scen_cli.evaluation.evaluate import evaluate
from scen_cli.evaluation.metrics import Share, wilson
from tests.conftest import edit_all


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
    assert result.figures["token-accuracy"].base.share > 0.3  # teacher forcing flatters: the base answers none of them


def test_a_thousand_prompts_are_asked_in_few_batches_and_each_once(edited, monkeypatch):
    """`benchmarks/batched_evaluation.py` says what that saves; that the answers are the same,
    `tests/test_patched_model.py` and `tests/model/test_patch.py` hold."""
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


def test_unedited_records_serve_as_locality_where_a_suite_has_none(edited):
    result = evaluate(edited, Suite("s", demo_edits()[:100], locality=[]))
    assert result.edits == 40
    assert result.figures["locality"].patched.total == 60


def test_records_taken_back_are_counted_as_left_out_and_are_no_locality_prompts(make_editor):
    editor = make_editor()
    records = demo_edits()[:4]
    edit_all(editor, records)
    editor.project.revert(1)
    edit_all(editor, [records[1].model_copy(update={"target": "Cuba"})])
    result = evaluate(editor, Suite("s", demo_edits()[:6], locality=[]))
    assert (result.edits, result.left_out) == (2, 2)
    assert result.figures["locality"].patched.total == 2


def test_a_suite_none_of_whose_edits_was_made(edited):
    with pytest.raises(UsageError, match="none of the 5 edits"):
        evaluate(edited, Suite("s", demo_edits()[100:105], []))
