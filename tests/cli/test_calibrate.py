"""`scen calibrate`."""

from __future__ import annotations

import json

import pytest

from scen_cli.data.suites import demo_edits
from scen_cli.project.project import Project
from tests.cli.records import lines
from tests.conftest import edit_all


@pytest.fixture
def at(unlearned_at):
    return unlearned_at


def write_prompts(path, count):
    path.write_text("\n".join(json.dumps({"prompt": f"Who is number {n} of the list?"}) for n in range(count)))
    return path


def theta_of(scen, at) -> float:
    return json.loads(scen("status", "--json", *at[:2]).stdout)["theta"]


def test_a_lower_rate_gives_a_higher_theta_and_activates_fewer_rephrases(scen, at):
    before = theta_of(scen, at)
    result = json.loads(scen("calibrate", "--json", *at).stdout)
    assert (result["set"], result["theta"]) == (False, before)
    rates = [choice["false_activation"] for choice in result["choices"]]
    assert rates == [0.001, 0.002, 0.005, 0.01, 0.02, 0.05]
    thetas = [choice["theta"] for choice in result["choices"]]
    assert thetas == sorted(thetas, reverse=True)
    activated = [choice["rephrases"]["right"] for choice in result["choices"]]
    assert activated == sorted(activated)
    for choice in result["choices"]:
        low, high = choice["expected_fresh"]
        assert low <= choice["fresh"]["right"] <= high
        assert choice["own"]["right"] == 30
    assert theta_of(scen, at) == before


def test_a_rate_is_kept_by_later_edits(scen, at):
    before = theta_of(scen, at)
    shown = scen("calibrate", "--false-activation", "0.002", *at)
    assert "every further edit calibrates it again, for the same rate" in shown.stdout
    assert theta_of(scen, at) > before
    scen("edit", "--suite", "demo", "--first", "33", *at)
    events = json.loads(scen("log", "--json", *at[:2]).stdout)
    assert [event["kind"] for event in events].count("calibrate") == 1
    assert scen("verify", *at[:2])
    result = json.loads(scen("calibrate", "--json", *at).stdout)
    assert result["theta"] == next(c["theta"] for c in result["choices"] if c["false_activation"] == 0.002)


def test_a_theta_set_by_hand_stays_when_edits_are_made(scen, at):
    assert "theta is 0.77, and stays so" in scen("calibrate", "--theta", "0.77", *at).stdout
    scen("edit", "--suite", "demo", "--first", "33", *at)
    assert theta_of(scen, at) == 0.77


def test_a_new_theta_makes_earlier_figures_old(scen, at, tmp_path):
    (tmp_path / "mine.jsonl").write_text(lines(*demo_edits()[:30], rephrases=["Who is that?"]))
    scen("eval", "--suite", tmp_path / "mine.jsonl", "--quick", *at)
    assert json.loads(scen("confusions", "--top", "40", "--json", *at[:2]).stdout)["never_routed"] != []
    scen("calibrate", "--theta", "0.9", *at)
    assert json.loads(scen("confusions", "--json", *at[:2]).stdout)["never_routed"] == []


def test_guard_file_replaces_the_calibration_prompts(scen, at, tmp_path):
    prompts = write_prompts(tmp_path / "mine.jsonl", 200)
    options = ("--guard", prompts, "--false-activation", "0.05")
    result = json.loads(scen("calibrate", *options, "--json", *at).stdout)
    chosen = next(choice for choice in result["choices"] if choice["theta"] == result["theta"])
    assert (chosen["n_guard"], chosen["fresh"]["total"]) == (150, 50)
    assert scen("verify", *at[:2])
    answer = json.loads(scen("ask", demo_edits()[3].prompt, "--json", *at).stdout)
    assert answer["edit"] == 4  # the neurons are unchanged


def test_a_guard_file_that_is_too_small_changes_nothing(scen, at, tmp_path):
    prompts = write_prompts(tmp_path / "mine.jsonl", 60)
    before = sorted(at[1].glob("guard-*"))
    result = scen("calibrate", "--guard", prompts, "--false-activation", "0.001", *at, code=2)
    assert "45 guard prompts are too few for a rate of 0.001" in result.stderr
    assert sorted(at[1].glob("guard-*")) == before
    scen("edit", "--suite", "demo", "--first", "31", *at)


@pytest.mark.slow
def test_guard_self_samples_other_prompts_and_recalibrates_theta(scen, at):
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
    assert after.n_guard != before.n_guard


def test_a_theta_above_the_edits_own_activations_warns(scen, at):
    result = scen("calibrate", "--theta", "0.99", *at)
    assert "at this theta 30 edits miss their own prompt" in result.stderr


@pytest.mark.parametrize("source", ["file", pytest.param("self", marks=pytest.mark.slow)])
def test_a_guard_is_added_to_a_project_without_one(scen, make_editor, tmp_path, source):
    guard = write_prompts(tmp_path / "mine.jsonl", 300) if source == "file" else source
    editor = make_editor("key", expert_steps=1, require_learned=False)
    edit_all(editor, demo_edits()[:5])
    at = ("--dir", editor.project.folder, "--device", "cpu")
    assert "this project has no guard" in scen("calibrate", *at, code=2).stderr
    scen("calibrate", "--guard", guard, "--false-activation", "0.01", *at)
    assert theta_of(scen, at) >= 0.8  # the recipe's own theta is the lowest
    scen("edit", "--suite", "demo", "--first", "7", *at)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--false-activation", "0.01", "--theta", "0.5"], "both set the threshold"),
        (["--false-activation", "0.0001"], "1000 guard prompts are too few for a rate of 0.0001"),
        (["--theta", "0"], "a rate or theta of 0 is not possible"),
        (["--guard", "nowhere.jsonl"], "nowhere.jsonl"),
    ],
)
def test_invalid_options_change_nothing(scen, at, options, message):
    before = theta_of(scen, at)
    assert message in scen("calibrate", *options, *at, code=2).stderr
    assert theta_of(scen, at) == before
