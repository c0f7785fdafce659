"""`scen calibrate`, `scen confusions`, `scen ask --trace`, as a user types them."""

from __future__ import annotations

import json

import pytest

from scen_cli.data.suites import demo_edits
from scen_cli.project.project import Project
from tests.conftest import edit_all

FAST = {"expert_steps": 1, "extra_steps": 0, "prompt_augmentations": 0, "require_learned": False}


@pytest.fixture
def at(make_editor):
    editor = make_editor("closed-form", **FAST, subject_filter=False, theta=0.2)
    edit_all(editor, demo_edits()[:30])
    return ("--dir", editor.project.folder, "--device", "cpu")


def theta_of(scen, at) -> float:
    return json.loads(scen("status", "--json", *at[:2]).stdout)["theta"]


class TestCalibrate:
    def test_a_lower_rate_takes_a_higher_theta_and_costs_rephrases(self, scen, at):
        before = theta_of(scen, at)
        told = json.loads(scen("calibrate", "--json", *at).stdout)
        assert (told["set"], told["theta"]) == (False, before)
        rates = [choice["false_activation"] for choice in told["choices"]]
        assert rates == [0.001, 0.002, 0.005, 0.01, 0.02, 0.05]
        thetas = [choice["theta"] for choice in told["choices"]]
        assert thetas == sorted(thetas, reverse=True)
        called = [choice["rephrases"]["right"] for choice in told["choices"]]
        assert called == sorted(called)
        for choice in told["choices"]:
            low, high = choice["expected_fresh"]
            assert low <= choice["fresh"]["right"] <= high
            assert choice["own"]["right"] == 30
        assert theta_of(scen, at) == before

    def test_it_is_set_remembered_and_kept_to(self, scen, at):
        before = theta_of(scen, at)
        shown = scen("calibrate", "--false-activation", "0.002", *at)
        assert "every further edit sets it anew, for the same rate" in shown.stdout
        assert theta_of(scen, at) > before
        scen("edit", "--suite", "demo", "--first", "33", *at)
        events = json.loads(scen("log", "--json", *at[:2]).stdout)
        assert [event["kind"] for event in events].count("calibrate") == 1
        assert scen("verify", *at[:2])
        told = json.loads(scen("calibrate", "--json", *at).stdout)
        assert told["theta"] == next(c["theta"] for c in told["choices"] if c["false_activation"] == 0.002)

    def test_a_theta_set_by_hand_stays_whatever_is_edited(self, scen, at):
        assert "theta is 0.77, and stays there" in scen("calibrate", "--theta", "0.77", *at).stdout
        scen("edit", "--suite", "demo", "--first", "33", *at)
        assert theta_of(scen, at) == 0.77

    def test_figures_of_before_are_old(self, scen, at):
        scen("eval", "--suite", "demo", "--quick", *at)
        scen("calibrate", "--theta", "0.9", *at)
        assert json.loads(scen("confusions", "--json", *at[:2]).stdout)["unreached"] == []

    def test_a_file_of_ones_own_to_calibrate_with(self, scen, at, tmp_path):
        prompts = tmp_path / "mine.jsonl"
        prompts.write_text("\n".join(json.dumps({"prompt": f"Who is number {n} of the list?"}) for n in range(200)))
        told = json.loads(scen("calibrate", "--guard", prompts, "--false-activation", "0.05", "--json", *at).stdout)
        chosen = next(choice for choice in told["choices"] if choice["theta"] == told["theta"])
        assert (chosen["prompts"], chosen["fresh"]["total"]) == (150, 50)
        assert scen("verify", *at[:2])
        answers = json.loads(scen("ask", demo_edits()[3].prompt, "--json", *at).stdout)
        assert answers["edit"] == 4  # neurons are as they were

    def test_a_guard_that_cannot_serve_changes_nothing(self, scen, at, tmp_path):
        prompts = tmp_path / "mine.jsonl"
        prompts.write_text("\n".join(json.dumps({"prompt": f"Who is number {n} of the list?"}) for n in range(60)))
        before = sorted(at[1].glob("guard-*"))
        said = scen("calibrate", "--guard", prompts, "--false-activation", "0.001", *at, code=2).stderr
        assert "45 guard prompts cannot tell a rate of 0.001" in said
        assert sorted(at[1].glob("guard-*")) == before
        scen("edit", "--suite", "demo", "--first", "31", *at)

    def test_new_prompts_share_none_with_the_old_and_theta_is_set_by_them_at_once(self, scen, at):
        project = Project(at[1])
        old = {prompt.prompt for prompt in project.guard().prompts}
        before = project.ledger.threshold()
        scen("calibrate", "--guard", "self", *at)
        guard = project.guard()
        new = [prompt.prompt for prompt in guard.prompts if prompt.split != "fit"]
        assert len(new) > 500
        assert not old & set(new)
        after = project.ledger.threshold()
        assert (after.chosen_by, after.false_activation) == ("calibration", 0.01)
        assert after.prompts != before.prompts

    def test_a_theta_too_high_for_some_edits_is_told(self, scen, at):
        told = scen("calibrate", "--theta", "0.99", *at)
        assert "at this theta 30 edits do not call themselves" in told.stderr

    def test_a_project_without_a_guard_gets_one(self, scen, make_editor):
        editor = make_editor("key", expert_steps=1, require_learned=False)
        edit_all(editor, demo_edits()[:5])
        at = ("--dir", editor.project.folder, "--device", "cpu")
        assert "this project has no guard" in scen("calibrate", *at, code=2).stderr
        scen("calibrate", "--guard", "self", "--false-activation", "0.01", *at)
        assert theta_of(scen, at) >= 0.8  # the recipe's own is the lowest
        scen("edit", "--suite", "demo", "--first", "7", *at)

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            (["--false-activation", "0.01", "--theta", "0.5"], "two ways to set the same thing"),
            (["--false-activation", "0.0001"], "1000 guard prompts cannot tell a rate of 0.0001"),
            (["--theta", "0"], "a rate or theta of 0 cannot be"),
            (["--guard", "nowhere.jsonl"], "nowhere.jsonl"),
        ],
    )
    def test_what_cannot_be(self, scen, at, options, said):
        before = theta_of(scen, at)
        assert said in scen("calibrate", *options, *at, code=2).stderr
        assert theta_of(scen, at) == before


def test_confusions_names_pairs_guard_prompts_and_edits_that_nothing_reaches(scen, at):
    scen("eval", "--suite", "demo", "--quick", *at)
    found = json.loads(scen("confusions", "--json", *at[:2]).stdout)
    first = found["pairs"][0]
    assert first["activation"] >= found["pairs"][1]["activation"]
    neurons = json.loads(scen("ask", demo_edits()[first["other"] - 1].prompt, "--json", *at).stdout)["neurons"]
    assert [neuron["edit"] for neuron in neurons[:2]] == [first["other"], first["edit"]]
    assert neurons[1]["activation"] == pytest.approx(first["activation"], abs=1e-3)
    assert neurons[0]["activation"] - neurons[1]["activation"] == pytest.approx(first["margin"], abs=1e-3)
    assert all(activation > found["theta"] for _prompt, _edit, activation in found["guard"])
    shown = scen("confusions", "--top", "3", *at[:2]).stdout
    assert f"nearest pairs (theta {found['theta']:.4f})" in shown
    assert len(json.loads(scen("confusions", "--top", "3", "--json", *at[:2]).stdout)["pairs"]) == 3


def test_confusions_of_nothing(scen, make_editor):
    editor = make_editor("closed-form", **FAST)
    assert "no edit is near another" in scen("confusions", "--dir", editor.project.folder).stdout


def test_a_trace_shows_what_was_read_and_why_nothing_fired(scen, make_editor):
    editor = make_editor("closed-form", **FAST)
    edit_all(editor, demo_edits()[:12])
    at = ("--dir", editor.project.folder, "--device", "cpu")
    record = demo_edits()[5]
    told = json.loads(scen("ask", "--trace", "--json", f"Thanks. {record.prompt}", *at).stdout)
    assert told["edit"] == 6
    whole, sentence = told["trace"]["parts"]
    assert whole["text"].startswith("<s>[INST]Thanks.")
    assert sentence["text"].startswith("<s>[INST] Where")
    assert sentence["edit"] == 6
    assert sentence["activation"] > whole["activation"]
    assert len(told["trace"]["guard"]) == 5
    # A name the base takes for the edit's own, but which is another
    other = record.prompt.replace(record.subject, record.subject[:-1])
    told = json.loads(scen("ask", "--trace", "--json", other, *at).stdout)
    assert told["edit"] is None
    shown = scen("ask", "--trace", other, *at).stdout
    assert told["trace"]["parts"][0]["activation"] > told["theta"]
    assert told["trace"]["blocked"] == [6]
    assert "but the prompt does not name its subject: Ivan Gromener" in shown
    assert "nearest guard prompts" in shown


def test_learned_rephrases_are_not_scored(scen, make_editor):
    editor = make_editor("closed-form", expert_steps=20)
    at = ("--dir", editor.project.folder, "--device", "cpu")
    scen("edit", "--suite", "demo", "--first", "3", "--train-rephrases", "2", *at)
    edit = editor.project.find(1)
    assert edit.train_rephrases == demo_edits()[0].rephrases[:2]
    told = json.loads(scen("eval", "--suite", "demo", "--quick", "--json", *at).stdout)
    assert told["figures"]["generality"]["patched"]["total"] == 9
    asked = {s["prompt"] for s in editor.project.ledger.evaluation(told["evaluation"])["samples"]}
    assert not asked & set(edit.train_rephrases)
    assert demo_edits()[0].rephrases[2] in asked
