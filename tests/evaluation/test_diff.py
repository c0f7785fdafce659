"""Differences between two evaluations."""

from __future__ import annotations

from scen_cli.evaluation.diff import changed_answers, changed_figures


def sample(prompt, patched, wanted="w", edit=1):
    fields = {"role": "r", "kind": "", "prompt": prompt, "edit": edit}
    return {**fields, "wanted": wanted, "patched": patched, "right": patched == wanted}


def test_changed_answers_are_lost_won_or_changed():
    before = [sample("a", "w"), sample("b", "x"), sample("c", "x"), sample("d", "w"), sample("gone", "w")]
    now = [sample("a", "x"), sample("b", "w"), sample("c", "y"), sample("d", "w"), sample("new", "w")]
    changes, unmatched = changed_answers(before, now)
    found = [(change.prompt, change.verdict, change.before, change.now) for change in changes]
    assert found == [("a", "lost", "w", "x"), ("b", "won", "x", "w"), ("c", "changed", "x", "y")]
    assert unmatched == 2


def test_changed_answers_matches_another_edit_of_the_same_prompt():
    [change], _unmatched = changed_answers([sample("a", "w")], [sample("a", "x", edit=7)])
    assert (change.verdict, change.edit) == ("lost", 7)


def test_changed_answers_matches_repeated_prompts_in_order():
    before, now = [sample("a", "w"), sample("a", "x")], [sample("a", "w"), sample("a", "w")]
    assert [change.verdict for change in changed_answers(before, now)[0]] == ["won"]


def test_changed_figures_has_none_for_a_figure_that_was_not_measured():
    before = {"r": {"patched": {"share": 0.5}}}
    now = {"p": {"patched": {"mean": 2.0}}, "r": {"patched": {"share": 0.25}}}
    assert changed_figures(before, now) == [("p", None, 2.0), ("r", 0.5, 0.25)]
