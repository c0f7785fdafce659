"""A project that is made again from its log: the same edits, reverts and thresholds, to the byte."""

from __future__ import annotations

import json
import shutil

import pytest

from scen_cli.data.log_events import split_log
from scen_cli.data.suites import demo_edits
from scen_cli.editing.editor import Editor
from scen_cli.editing.replay_log import replay
from scen_cli.project.project import Project

RECORDS = demo_edits()[:6]
FAST = {"prompt_augmentations": 0, "expert_steps": 6, "extra_steps": 30}


@pytest.fixture
def at(logged_at):
    return logged_at


def log_of(scen, at) -> str:
    return scen("log", "--json", *at).stdout


def replay_in_new_project(scen, at, tmp_path, *options):
    """`--dir` of a second project that was made from the log of the first one, and the result of `scen edit`."""
    again = ("--dir", tmp_path / "again")
    scen("init", "--model", "demo", "--recipe", "key", *options, *again)
    return again, scen("edit", "-", *again, stdin=log_of(scen, at))


@pytest.fixture
def new_at(make_editor):
    """A function that makes a project by the default recipe with few steps, and returns its `--dir`."""
    return lambda **changes: ("--dir", make_editor("closed-form", **FAST, **changes).project.folder)


def state_of(folder):
    """Everything that a replay must restore."""
    project = Project(folder)
    rows = [(e.prompt, e.target, e.state, e.sha256, e.bias, e.activation) for e in project.ledger.edits()]
    return rows, [threshold.theta for threshold in project.ledger.thresholds()], project.w_merge().neurons.tobytes()


def test_replay_makes_the_same_edits_and_reverts(scen, at, tmp_path):
    again, result = replay_in_new_project(scen, at, tmp_path)
    assert "3 edited" in result.stdout
    assert state_of(again[1]) == state_of(at[1])
    prompt = RECORDS[0].prompt
    answers = [json.loads(scen("ask", prompt, "--json", *project).stdout) for project in (at, again)]
    assert answers[0] == answers[1]


@pytest.mark.slow
def test_replay_makes_conflicts_failures_and_thresholds_again(scen, new_at, tmp_path, demo_base):
    at, again = new_at(), new_at()
    scen("edit", "--suite", "demo", "--first", "4", *at)
    long = "a very long target that no expert learns in so few steps, whatever its rank is: "
    scen("edit", "--prompt", "Qq?", "--target", long * 3, "--keep-going", *at, code=3)
    other = {"prompt": RECORDS[1].rephrases[0], "target": RECORDS[2].target, "subject": RECORDS[1].subject}
    (tmp_path / "e.jsonl").write_text(json.dumps(other))
    scen("edit", tmp_path / "e.jsonl", "--conflicts", "supersede", *at)
    scen("revert", "1", *at)
    scen("calibrate", "--false-activation", "0.05", *at)
    scen("edit", "--prompt", RECORDS[0].prompt, "--target", "Peru", *at)
    states = [edit.state for edit in Project(at[1]).ledger.edits()]
    assert {"active", "failed", "reverted", "superseded"} == set(states)
    scen("edit", "-", *again, stdin=log_of(scen, at), code=3)
    assert state_of(again[1]) == state_of(at[1])
    prompts = [text for record in RECORDS for text in (record.prompt, *record.rephrases)]
    answers = []
    for project in (at, again):
        editor = Editor(Project(project[1]), base=demo_base)
        found = editor.answer(prompts)
        answers.append((found.texts, found.edits))
        editor.detach()
    assert answers[0] == answers[1]
    assert "0 edited, 7 skipped" in scen("edit", "-", *again, stdin=log_of(scen, at)).stdout
    assert state_of(again[1]) == state_of(at[1])


@pytest.mark.slow
def test_a_second_replay_changes_nothing(scen, new_at):
    """Nor does it change theta, which a revert changed after it was calibrated."""
    at, again = (new_at(theta=0.05, subject_filter=False) for _ in range(2))
    scen("edit", "--suite", "demo", "--first", "4", *at)
    scen("calibrate", "--false-activation", "0.05", *at)
    scen("revert", "1", "2", *at)
    assert len({threshold.theta for threshold in Project(at[1]).ledger.thresholds()}) > 2
    log = log_of(scen, at)
    for _ in range(2):
        scen("edit", "-", *again, stdin=log)
        assert state_of(again[1]) == state_of(at[1])
    assert "this is the project's own log" in scen("edit", "-", *at, stdin=log, code=2).stderr


def test_entries_are_matched_by_hash_and_not_by_position(scen, at, tmp_path):
    again, _result = replay_in_new_project(scen, at, tmp_path)
    events = json.loads(log_of(scen, at))
    shorter = json.dumps([events[0], *events[2:]])
    assert "0 edited, 2 skipped" in scen("edit", "-", *again, stdin=shorter).stdout
    assert state_of(again[1]) == state_of(at[1])


def test_an_interrupted_replay_continues(scen, at, tmp_path, demo_base):
    (tmp_path / "log.json").write_text(log_of(scen, at))
    events, _items = split_log(str(tmp_path / "log.json"))
    scen("init", "--model", "demo", "--recipe", "key", "--dir", tmp_path / "again")
    for _ in range(4):  # each replay stops after one more edit
        editor = Editor(Project(tmp_path / "again"), base=demo_base)
        with editor.project.writing():
            for outcomes in replay(editor, events):
                if outcomes[0].outcome == "edited":
                    break
            else:
                editor.project.merge()
        editor.detach()
    assert state_of(tmp_path / "again") == state_of(at[1])


def test_replay_trains_batches_as_they_were(scen, new_at, tmp_path, demo_base):
    """Experts of a batch differ in their last digits from experts that were trained alone."""
    at, again, alone = new_at(), new_at(), new_at()
    scen("edit", "--suite", "demo", "--first", "6", "--batch", "4", *at)
    scen("edit", "--suite", "demo", "--first", "6", *alone)
    files = [[edit.sha256 for edit in Project(project[1]).ledger.edits()] for project in (at, alone)]
    assert files[0] != files[1]

    (tmp_path / "log.json").write_text(log_of(scen, at))
    events, _items = split_log(str(tmp_path / "log.json"))
    first = Editor(Project(again[1]), base=demo_base)  # stops in the middle of the first batch
    with first.project.writing():
        steps = replay(first, events)
        assert [next(steps)[0].outcome for _ in range(2)] == ["edited"] * 2
    first.detach()
    result = scen("edit", "-", *again, stdin=log_of(scen, at))
    assert "may differ" not in result.stderr
    assert state_of(again[1]) == state_of(at[1])


def test_replay_warns_of_batches_that_are_not_whole_in_the_log(scen, new_at):
    at, again = new_at(), new_at()
    scen("edit", "--suite", "demo", "--first", "4", "--batch", "4", *at)
    events = [event for event in json.loads(log_of(scen, at)) if event["edit"] != 2]
    result = scen("edit", "-", *again, stdin=json.dumps(events))
    assert "3 experts were trained in batches with records that are not in the log" in result.stderr
    assert len(Project(again[1]).ledger.active_experts()) == 3


def test_replay_trains_edits_of_one_expert_together_even_if_one_failed(scen, tmp_path):
    at, again = ("--dir", tmp_path / "p"), ("--dir", tmp_path / "again")
    options = ("--recipe", "key", "--set", "edits_per_expert=2", "--set", "require_learned=true")
    records = [record.as_json() for record in RECORDS[:4]]
    records[2]["target"] = "a target that is far too long for so few steps " * 3
    lines = "\n".join(json.dumps(record) for record in records)
    scen("init", "--model", "demo", *options, *at)
    scen("edit", "-", "--keep-going", *at, stdin=lines, code=3)
    assert "failed" in {edit.state for edit in Project(at[1]).ledger.edits()}
    scen("init", "--model", "demo", *options, *again)
    scen("edit", "-", *again, stdin=log_of(scen, at), code=3)
    assert state_of(again[1]) == state_of(at[1])


def test_replay_keeps_the_reason_of_a_kept_conflict(scen, new_at):
    at, again = new_at(), new_at()
    record = {"prompt": RECORDS[0].rephrases[0], "target": "Peru", "subject": RECORDS[0].subject}
    scen("edit", "--suite", "demo", "--first", "1", *at)
    scen("edit", "-", "--conflicts", "keep", "--reason", "to see", *at, stdin=json.dumps(record))
    scen("edit", "-", *again, stdin=log_of(scen, at))
    reasons = [Project(project[1]).find(2).reason for project in (at, again)]
    assert reasons[0] == reasons[1]
    assert reasons[0].endswith("to see")


def test_replay_warns_of_other_settings(scen, at, tmp_path):
    _again, result = replay_in_new_project(scen, at, tmp_path, "--layer", "1", "--seed", "3")
    assert "answers may differ from the logged project's: `layer` was 2, here it is 1" in result.stderr
    assert "`seed` was 0, here it is 3" in result.stderr


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda events: events[1].pop("record"), "is of an edit, but has no record"),
        (lambda events: events[1].update(detail="x"), "has a field of the wrong type"),
        (lambda events: events[4].update(edit=77), "reverts edit 77, which the log did not make"),
        (lambda events: events[1]["record"].update(target=3), "`target` must be text"),
        (lambda events: events[1]["detail"].update(supersedes=5), "names edits by something else than numbers"),
        (lambda events: events[1]["detail"].update(together=[[1]]), "names edits by something else than numbers"),
        (lambda events: events[1]["detail"].update(batch=[1]), "has a `batch` that is not an index and a size"),
    ],
)
def test_a_malformed_log_is_refused(scen, at, tmp_path, change, message):
    events = json.loads(log_of(scen, at))
    change(events)
    scen("init", "--model", "demo", "--recipe", "key", "--dir", tmp_path / "again")
    result = scen("edit", "-", "--dir", tmp_path / "again", stdin=json.dumps(events), code=2)
    assert message in result.stderr


def test_options_that_change_records_are_refused(scen, at, tmp_path):
    shutil.copytree(at[1], tmp_path / "copy")
    result = scen("edit", "-", "--first", "1", "--dir", tmp_path / "copy", stdin=log_of(scen, at), code=2)
    assert "a log is replayed as it is" in result.stderr
