"""`scen log`: who did what, and whether the log is intact."""

from __future__ import annotations

import json
import sqlite3

import pytest

from scen_cli.data.suites import demo_edits
from scen_cli.project.event_log import event_hash
from scen_cli.project.project import Project

RECORDS = demo_edits()[:6]


@pytest.fixture
def at(logged_at):
    return logged_at


class TestAuthor:
    def test_every_event_has_author_version_recipe_and_seed(self, scen, at):
        from scen_cli import __version__

        events = json.loads(scen("log", "--json", *at).stdout)
        assert [event["kind"] for event in events] == ["init", "edit", "edit", "edit", "revert"]
        assert [event["detail"]["author"] for event in events][0::2] == ["Ada <ada@example.com>", "Eva", "Max"]
        assert {event["detail"]["version"] for event in events} == {__version__}
        settings = Project(at[1]).settings
        for event in events[1:4]:
            detail = event["detail"]
            assert (detail["recipe"], detail["base"]) == ("key", settings["weights_digest"])
            assert detail["seed"] == event["edit"]  # the project's seed, 0, plus the id of the edit
        assert "Eva" in scen("log", *at).stdout
        shown = json.loads(scen("show", "3", *at, "--json").stdout)
        assert (shown["author"], shown["version"], shown["recipe"]) == ("Eva", __version__, "key")

    def test_the_default_author_is_gits_user_or_the_login(self, scen, tmp_path, monkeypatch):
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


def run_sql(folder, *statements):
    db = sqlite3.connect(folder / "scen.db")
    for statement in statements:
        db.execute(statement)
    db.commit()
    db.close()


class TestVerify:
    def test_an_intact_log(self, scen, at):
        result = json.loads(scen("log", "--verify", "--json", *at).stdout)
        assert (result["entries"], result["problems"]) == (5, [])
        assert result["head"] in scen("log", "--verify", *at).stdout

    @pytest.mark.parametrize(
        ("statements", "problem"),
        [
            (["update events set detail = replace(detail, 'Cuba', 'Mali') where id = 3"], "event 3 does not follow"),
            (["update events set created = '2020-01-01T00:00:00+00:00' where id = 2"], "event 2 does not follow"),
            (["update events set detail = replace(detail, 'Eva', 'Ada') where id = 3"], "event 3 does not follow"),
            (["delete from events where id = 3"], "event 4 is where event 3 must be"),
            (["delete from events where id = 5"], "edit 2 is not as it was committed: state"),
            (["delete from events where id = 4"], "event 5 is where event 4 must be"),
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
    def test_a_changed_ledger_is_found(self, scen, at, statements, problem):
        run_sql(at[1], *statements)
        for command in (["log", "--verify"], ["verify"]):
            result = scen(*command, *at, code=12)
            assert problem in result.stdout + result.stderr  # changed settings are refused when the project is opened

    def test_a_rewritten_history_is_found_with_a_hash_from_before(self, scen, at):
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
        assert scen("log", "--verify", *at)  # the new chain of hashes is consistent
        assert "another log, or it was rewritten" in scen("log", "--verify", "--head", head, *at, code=12).stdout
        assert scen("log", "--verify", "--head", previous[:12], *at)
        for short in ("", previous[:7]):
            assert "too short" in scen("log", "--verify", "--head", short, *at, code=2).stderr


def test_an_unreadable_event_is_damage(scen, at):
    run_sql(at[1], "update events set created = x'ff' where id = 2")
    for command in (["log"], ["log", "--json"]):
        assert "event 2" in scen(*command, *at, code=12).stderr
