"""`scen status`, `scen log` and `scen show`."""

from __future__ import annotations

import json

from scen_cli.project.project import Project
from tests.cli.records import RECORDS
from tests.project.test_project import SETTINGS, commit


def test_status_log_and_show(scen, edited_at):
    assert "40 active" in scen("status", *edited_at).stdout
    events = json.loads(scen("log", *edited_at, "--json").stdout)
    assert [event["kind"] for event in events] == ["init"] + ["edit"] * 40
    shown = json.loads(scen("show", "2", *edited_at, "--json").stdout)
    assert (shown["prompt"], shown["state"]) == (RECORDS[1].prompt, "active")
    assert len(shown["expert_losses"]) == 10
    assert shown["expert_losses"][-1] < shown["expert_losses"][0]
    assert "there is no edit 99" in scen("show", "99", *edited_at, code=2).stderr


def test_status_lists_the_last_edits_and_counts_all(scen, tmp_path):
    project = Project.create(tmp_path / "p", {**SETTINGS, "recipe": {"name": "key"}}, theta=0.65)
    for number in range(102):
        commit(project, f"Who {number}?", number=number)
    status = json.loads(scen("status", "--dir", project.folder, "--json").stdout)
    assert [edit["id"] for edit in status["edits"]] == list(range(3, 103))
    assert (status["states"]["active"], status["older_edits"]) == (102, 2)
    assert status["bytes"] == sum(path.stat().st_size for path in (project.folder / "edits").iterdir())
    assert "and 2 older edits: `scen status --all` lists them" in scen("status", "--dir", project.folder).stdout
    assert len(json.loads(scen("status", "--all", "--dir", project.folder, "--json").stdout)["edits"]) == 102


def test_show_prints_losses_and_supersedes(scen, at):
    for target in ("Peru", "Cuba"):
        scen("edit", "--prompt", RECORDS[0].prompt, "--target", target, *at)
    assert json.loads(scen("show", "2", *at, "--json").stdout)["supersedes"] == [1]
    printed = scen("show", "2", *at).stdout
    assert " in 10 steps" in printed
    assert "a full expert" in printed
    assert "subject_names" not in printed


def test_in_a_pipe_a_record_is_one_line(scen, at):
    long = "Where, when and on which of the many rivers of that country was it that Ada was born " * 3
    scen("edit", "--prompt", long + "?", "--target", "Riga", *at)
    printed = scen("status", *at).stdout.splitlines()
    assert f"   1  active  {long}?  Riga" in printed
    assert all(line == line.rstrip() for line in printed)
