"""Answers are generated once for all evaluations; what they depend on decides whether one is taken again."""

from __future__ import annotations

from dataclasses import replace

import pytest

from scen_cli.data.suites import demo_edits, load_suite
from scen_cli.evaluation.evaluate_project import evaluate
from tests.conftest import edit_all, revert

SUITE = replace(load_suite("demo"), locality=load_suite("demo").locality[:60])


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache."""
    monkeypatch.setenv("SCEN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def generated(demo_base, monkeypatch):
    """How many answers the base has generated: a list with one number for each batch."""
    rows, generate = [], demo_base.model.generate

    def counting(*arguments, **options):
        rows.append(len(options["input_ids"]))
        return generate(*arguments, **options)

    monkeypatch.setattr(demo_base.model, "generate", counting)
    return rows


def test_a_second_evaluation_generates_nothing_and_is_the_same(cache, generated, make_editor):
    editor = make_editor()
    edit_all(editor, demo_edits()[:4])
    first = evaluate(editor, SUITE)
    assert sum(generated) > 60
    generated.clear()
    assert evaluate(editor, SUITE) == first
    assert generated == []


def test_after_another_edit_only_its_own_answers_are_new(cache, generated, make_editor):
    editor = make_editor()
    edit_all(editor, demo_edits()[:4])
    evaluate(editor, SUITE, quick=True)
    all_answers = sum(generated)
    edit_all(editor, demo_edits()[4:5])
    generated.clear()
    evaluate(editor, SUITE, quick=True)
    assert 0 < sum(generated) < all_answers / 2


def test_an_expert_with_another_target_gives_its_own_answers(cache, make_editor):
    editor, record = make_editor(), demo_edits()[0]
    suite = replace(SUITE, edits=(record, record.model_copy(update={"target": "green"})))
    for wanted in suite.edits:
        edit_all(editor, [wanted])
        [sample] = [s for s in evaluate(editor, suite, quick=True).samples if s.role == "reliability"]
        assert (sample.patched, sample.wanted) == (wanted.target, wanted.target)
        revert(editor.project, editor.project.ledger.edits("active")[0].id)


def test_beams_and_greedy_answers_are_stored_apart(cache, generated, make_editor):
    editor = make_editor()
    edit_all(editor, demo_edits()[:4])
    evaluate(editor, SUITE, "greedy", quick=True)
    generated.clear()
    evaluate(editor, SUITE, "paper", quick=True)
    assert sum(generated) > 0


@pytest.mark.parametrize("damage", ["no database", "wrong tokens", "a folder in its place"])
def test_a_damaged_store_costs_time_alone(cache, generated, make_editor, damage):
    editor = make_editor()
    edit_all(editor, demo_edits()[:4])
    first = evaluate(editor, SUITE, quick=True)
    [file] = (cache / "answers").iterdir()
    if damage == "no database":
        file.write_bytes(b"damaged" * 1000)
    elif damage == "wrong tokens":
        from sqlite_utils import Database

        Database(file).execute("update answers set tokens = '{\"a\": 1}'").connection.commit()
    else:
        file.unlink()
        file.mkdir()
    generated.clear()
    assert evaluate(editor, SUITE, quick=True) == first
    assert sum(generated) > 0
