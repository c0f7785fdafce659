"""The log: who did what, whether it is whole, and a project made again from it."""

from __future__ import annotations

import json
import shutil
import sqlite3

import pytest

from scen_cli.data.suites import demo_edits
from scen_cli.editing.editor import Editor
from scen_cli.project.event_log import event_hash
from scen_cli.project.project import Project

RECORDS = demo_edits()[:6]
FAST = ("--set", "prompt_augmentations=0", "--set", "expert_steps=6", "--set", "extra_steps=30")


@pytest.fixture
def at(scen, tmp_path):
    folder = tmp_path / "p"
    scen("init", "--model", "demo", "--recipe", "key", "--dir", folder, "--author", "Ada <ada@example.com>")
    for number, target in enumerate(("Peru", "Cuba", "Chad")):
        author = ("--author", "Eva") if number else ()
        scen("edit", "--prompt", RECORDS[number].prompt, "--target", target, "--dir", folder, *author)
    scen("revert", "2", "--dir", folder, "--author", "Max")
    return ("--dir", folder)


class TestWho:
    def test_every_entry_says_who_and_with_what(self, scen, at):
        from scen_cli import __version__

        events = json.loads(scen("log", "--json", *at).stdout)
        assert [event["kind"] for event in events] == ["init", "edit", "edit", "edit", "revert"]
        assert [event["detail"]["author"] for event in events][0::2] == ["Ada <ada@example.com>", "Eva", "Max"]
        assert {event["detail"]["version"] for event in events} == {__version__}
        settings = Project(at[1]).settings
        for event in events[1:4]:
            told = event["detail"]
            assert (told["recipe"], told["base"]) == ("key", settings["weights_digest"])
            assert told["seed"] == event["edit"]  # the project's, 0, and the edit's number
        assert "Eva" in scen("log", *at).stdout
        shown = json.loads(scen("show", "3", *at, "--json").stdout)
        assert (shown["author"], shown["version"], shown["recipe"]) == ("Eva", __version__, "key")

    def test_without_a_name_it_is_gits_or_the_login(self, scen, tmp_path, monkeypatch):
        (tmp_path / "gitconfig").write_text("[user]\n\tname = Git User\n\temail = git@example.com\n")
        monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "gitconfig"))
        monkeypatch.chdir(tmp_path)
        scen("init", "--model", "demo", "--recipe", "key", "--dir", tmp_path / "a")
        assert "Git User <git@example.com>" in scen("log", "--dir", tmp_path / "a").stdout
        monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "none"))
        monkeypatch.setenv("GIT_CONFIG_SYSTEM", str(tmp_path / "none"))
        monkeypatch.setenv("LOGNAME", "somebody")
        scen("init", "--model", "demo", "--recipe", "key", "--dir", tmp_path / "b")
        assert "somebody" in scen("log", "--dir", tmp_path / "b").stdout
        monkeypatch.setenv("SCEN_AUTHOR", "the pipeline")
        scen("init", "--model", "demo", "--recipe", "key", "--dir", tmp_path / "c")
        assert "the pipeline" in scen("log", "--dir", tmp_path / "c").stdout


def doctor(folder, *statements):
    db = sqlite3.connect(folder / "scen.db")
    for statement in statements:
        db.execute(statement)
    db.commit()
    db.close()


class TestVerify:
    def test_a_whole_log(self, scen, at):
        told = json.loads(scen("log", "--verify", "--json", *at).stdout)
        assert (told["entries"], told["problems"]) == (5, [])
        assert told["head"] in scen("log", "--verify", *at).stdout

    @pytest.mark.parametrize(
        ("statements", "said"),
        [
            (["update events set detail = replace(detail, 'Cuba', 'Mali') where id = 3"], "event 3 does not follow"),
            (["update events set created = '2020-01-01T00:00:00+00:00' where id = 2"], "event 2 does not follow"),
            (["update events set detail = replace(detail, 'Eva', 'Ada') where id = 3"], "event 3 does not follow"),
            (["delete from events where id = 3"], "event 4 stands where event 3 must"),
            (["delete from events where id = 5"], "edit 2 is not as it was committed: state"),
            (["delete from events where id = 4"], "event 5 stands where event 4 must"),
            (
                [
                    "update events set id = 9 where id = 2",
                    "update events set id = 2 where id = 3",
                    "update events set id = 3 where id = 9",
                ],
                "event 2 does not follow",
            ),
            (["insert into events select 6, created, kind, edit, detail, hash from events where id = 5"], "event 6"),
            (["update edits set rephrases = '[\"x\"]' where id = 1"], "edit 1 is not as it was committed: its record"),
            (["update edits set state = 'active' where id = 2"], "edit 2 is not as it was committed: state"),
            (["update edits set bias = 0.5 where id = 1"], "edit 1 is not as it was committed: bias"),
            (["update events set created = x'ff' where id = 2"], "cannot be read"),
            (["delete from edits where id = 2"], "edit 2 is gone"),
            (
                ["update settings set value = '3' where name = 'layer'"],
                "setting `layer` in `scen.db` is 3; it was set to 2",
            ),
            (["update thresholds set chosen_by = 'x'"], "threshold 1 is not as it was set"),
            (["insert into thresholds (theta, chosen_by, created) values (0.1, 'x', 'y')"], "theta is 0.1"),
        ],
    )
    def test_what_was_changed_is_found(self, scen, at, statements, said):
        doctor(at[1], *statements)
        for command in (["log", "--verify"], ["verify"]):
            result = scen(*command, *at, code=12)
            assert said in result.stdout + result.stderr  # other settings are refused as the project is opened

    def test_a_history_that_was_written_anew_is_found_by_who_kept_the_newest_hash(self, scen, at):
        head = json.loads(scen("log", "--verify", "--json", *at).stdout)["head"]
        scen("edit", "--prompt", RECORDS[4].prompt, "--target", "Oman", *at)
        assert scen("log", "--verify", "--head", head, *at)
        db = sqlite3.connect(at[1] / "scen.db")
        db.row_factory = sqlite3.Row
        previous = ""
        for row in db.execute("select * from events order by id").fetchall():
            event = {**row, "detail": row["detail"].replace("Max", "Eva")}
            previous = event_hash(previous, event)
            db.execute("update events set detail = ?, hash = ? where id = ?", [event["detail"], previous, event["id"]])
        db.commit()
        assert scen("log", "--verify", *at)  # it hangs together
        assert "not the one that you know" in scen("log", "--verify", "--head", head, *at, code=12).stdout
        assert scen("log", "--verify", "--head", previous[:12], *at)
        for short in ("", previous[:7]):
            assert "too short" in scen("log", "--verify", "--head", short, *at, code=2).stderr


def remade(scen, at, tmp_path, *options):
    """A second project, made from the first one's log."""
    log = scen("log", "--json", *at).stdout
    again = ("--dir", tmp_path / "again")
    scen("init", "--model", "demo", *options, *again)
    return again, scen("edit", "-", *again, stdin=log)


def state(folder):
    project = Project(folder)
    rows = [(e.prompt, e.target, e.state, e.sha256, e.bias, e.activation) for e in project.ledger.edits()]
    return rows, [one.theta for one in project.ledger.thresholds()], project.w_merge().neurons.tobytes()


class TestReplay:
    def test_edits_and_reverts_come_out_the_same(self, scen, at, tmp_path):
        again, result = remade(scen, at, tmp_path, "--recipe", "key")
        assert "3 edited" in result.stdout
        assert state(again[1]) == state(at[1])
        prompt = RECORDS[0].prompt
        said = [json.loads(scen("ask", prompt, "--json", *where).stdout) for where in (at, again)]
        assert said[0] == said[1]

    def test_theta_conflicts_failed_edits_and_all_else_come_out_the_same(self, scen, tmp_path, demo_base):
        at = ("--dir", tmp_path / "p")
        scen("init", "--model", "demo", *FAST, *at)
        scen("edit", "--suite", "demo", "--first", "4", *at)
        long = "a very long target that nobody could learn in so few steps, whatever the rank of its expert may be"
        scen("edit", "--prompt", "Qq?", "--target", long * 3, "--keep-going", *at, code=3)
        other = {"prompt": RECORDS[1].rephrases[0], "target": RECORDS[2].target, "subject": RECORDS[1].subject}
        (tmp_path / "e.jsonl").write_text(json.dumps(other))
        scen("edit", tmp_path / "e.jsonl", "--conflicts", "supersede", *at)
        scen("revert", "1", *at)
        scen("calibrate", "--false-activation", "0.05", *at)
        scen("edit", "--prompt", RECORDS[0].prompt, "--target", "Peru", *at)
        states = [edit.state for edit in Project(at[1]).ledger.edits()]
        assert {"active", "failed", "reverted", "superseded"} == set(states)
        again, _result = remade_with_failures(scen, at, tmp_path)
        assert state(again[1]) == state(at[1])
        prompts = [text for record in RECORDS for text in (record.prompt, *record.rephrases)]
        answers = []
        for where in (at, again):
            editor = Editor(Project(where[1]), base=demo_base)
            found = editor.answer(prompts)
            answers.append((found.texts, found.edits))
            editor.detach()
        assert answers[0] == answers[1]
        assert "0 edited, 7 skipped" in scen("edit", "-", *again, stdin=scen("log", "--json", *at).stdout).stdout
        assert state(again[1]) == state(at[1])

    def test_a_replay_that_is_done_again_changes_nothing(self, scen, tmp_path):
        """Not theta either, which a revert moved after it was calibrated."""
        at, again = ("--dir", tmp_path / "p"), ("--dir", tmp_path / "again")
        scen("init", "--model", "demo", *FAST, "--set", "theta=0.05", "--set", "subject_filter=false", *at)
        scen("edit", "--suite", "demo", "--first", "4", *at)
        scen("calibrate", "--false-activation", "0.05", *at)
        scen("revert", "1", "2", *at)
        assert len({one.theta for one in Project(at[1]).ledger.thresholds()}) > 2
        log = scen("log", "--json", *at).stdout
        scen("init", "--model", "demo", *FAST, "--set", "theta=0.05", "--set", "subject_filter=false", *again)
        for _ in range(2):
            scen("edit", "-", *again, stdin=log)
            assert state(again[1]) == state(at[1])
        assert "this is the project's own log" in scen("edit", "-", *at, stdin=log, code=2).stderr

    def test_an_event_that_is_no_text_is_damage_and_no_traceback(self, scen, at):
        doctor(at[1], "update events set created = x'ff' where id = 2")
        for command in (["log"], ["log", "--json"]):
            assert "event 2" in scen(*command, *at, code=12).stderr

    def test_a_log_without_some_of_its_entries_goes_on_from_the_same_place(self, scen, at, tmp_path):
        """Entries are known by their hashes, not by where they stand."""
        again, _result = remade(scen, at, tmp_path, "--recipe", "key")
        events = json.loads(scen("log", "--json", *at).stdout)
        shorter = json.dumps([events[0], *events[2:]])
        assert "0 edited, 2 skipped" in scen("edit", "-", *again, stdin=shorter).stdout
        assert state(again[1]) == state(at[1])

    def test_a_replay_that_was_killed_goes_on(self, scen, at, tmp_path, demo_base):
        from scen_cli.data.log_events import split_log
        from scen_cli.editing.replay_log import replay

        (tmp_path / "log.json").write_text(scen("log", "--json", *at).stdout)
        events, _items = split_log(str(tmp_path / "log.json"))
        scen("init", "--model", "demo", "--recipe", "key", "--dir", tmp_path / "again")
        for _ in range(4):  # each time one edit further, and stopped there
            editor = Editor(Project(tmp_path / "again"), base=demo_base)
            with editor.project.writing():
                for made in replay(editor, events):
                    if made[0].outcome == "edited":
                        break
                else:
                    editor.project.merge()
            editor.detach()
        assert state(tmp_path / "again") == state(at[1])

    def test_edits_that_share_an_expert_are_made_together_even_where_one_failed(self, scen, tmp_path):
        at, again = ("--dir", tmp_path / "p"), ("--dir", tmp_path / "again")
        options = ("--recipe", "key", "--set", "edits_per_expert=2", "--set", "require_learned=true")
        records = [record.as_json() for record in RECORDS[:4]]
        records[2]["target"] = "a target that is far too long for so few steps " * 3
        lines = "\n".join(json.dumps(record) for record in records)
        scen("init", "--model", "demo", *options, *at)
        scen("edit", "-", "--keep-going", *at, stdin=lines, code=3)
        assert "failed" in {edit.state for edit in Project(at[1]).ledger.edits()}
        scen("init", "--model", "demo", *options, *again)
        scen("edit", "-", *again, stdin=scen("log", "--json", *at).stdout, code=3)
        assert state(again[1]) == state(at[1])

    def test_why_both_were_kept_is_kept(self, scen, tmp_path):
        at, again = ("--dir", tmp_path / "p"), ("--dir", tmp_path / "again")
        scen("init", "--model", "demo", *FAST, *at)
        record = {"prompt": RECORDS[0].rephrases[0], "target": "Peru", "subject": RECORDS[0].subject}
        scen("edit", "--suite", "demo", "--first", "1", *at)
        scen("edit", "-", "--conflicts", "keep", "--reason", "to see", *at, stdin=json.dumps(record))
        scen("init", "--model", "demo", *FAST, *again)
        scen("edit", "-", *again, stdin=scen("log", "--json", *at).stdout)
        reasons = [Project(where[1]).find(2).reason for where in (at, again)]
        assert reasons[0] == reasons[1]
        assert reasons[0].endswith("to see")

    def test_another_base_layer_or_recipe_is_told_of(self, scen, at, tmp_path):
        _again, result = remade(scen, at, tmp_path, "--recipe", "key", "--layer", "1", "--seed", "3")
        assert "answers may differ from the log's: `layer` was 2, here it is 1" in result.stderr
        assert "`seed` was 0, here it is 3" in result.stderr

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            (lambda events: events[1].pop("record"), "is of an edit, but has no record of it"),
            (lambda events: events[1].update(detail="x"), "holds something else than it must"),
            (lambda events: events[4].update(edit=77), "takes back edit 77, which the log did not make"),
            (lambda events: events[1]["record"].update(target=3), "`target` must be text"),
            (lambda events: events[1]["detail"].update(supersedes=5), "names edits otherwise than by numbers"),
            (lambda events: events[1]["detail"].update(together=[[1]]), "names edits otherwise than by numbers"),
        ],
    )
    def test_a_log_that_is_none(self, scen, at, tmp_path, change, said):
        events = json.loads(scen("log", "--json", *at).stdout)
        change(events)
        scen("init", "--model", "demo", "--recipe", "key", "--dir", tmp_path / "again")
        result = scen("edit", "-", "--dir", tmp_path / "again", stdin=json.dumps(events), code=2)
        assert said in result.stderr

    def test_options_that_would_change_it_are_refused(self, scen, at, tmp_path):
        log = scen("log", "--json", *at).stdout
        shutil.copytree(at[1], tmp_path / "copy")
        told = scen("edit", "-", "--first", "1", "--dir", tmp_path / "copy", stdin=log, code=2).stderr
        assert "a log is replayed as it is" in told


def remade_with_failures(scen, at, tmp_path):
    log = scen("log", "--json", *at).stdout
    again = ("--dir", tmp_path / "again")
    scen("init", "--model", "demo", *FAST, *again)
    return again, scen("edit", "-", *again, stdin=log, code=3)
