"""Projects made before a table had all its columns open, and say what they said."""

from __future__ import annotations

import sqlite3

from scen_cli.project.check import verify
from scen_cli.project.project import Project
from scen_cli.report.gather import gather
from scen_cli.report.markdown import as_markdown
from tests.project.test_project import SETTINGS, commit

MORE = {"weights_digest": "0" * 64, "module": "m", "recipe": {"name": "paper", "theta": 0.65}}


def test_a_ledger_without_experts_and_samples_is_brought_up_to_date(tmp_path):
    project = Project.create(tmp_path / "p", {**SETTINGS, **MORE}, theta=0.65)
    commit(project, "Who?", number=1)
    commit(project, "Where?", number=2)
    project.revert(1)
    share = {"right": 1, "total": 2, "share": 0.5, "low": 0.1, "high": 0.9}
    of_model = dict.fromkeys(("reliability", "generality", "locality", "token_accuracy"), share)
    old = {"suite": "s", "decoding": "greedy", "patched": of_model, "base": of_model}
    old |= dict.fromkeys(("generality_given_expert", "rephrases_routed", "locality_fired"), share)
    old |= dict.fromkeys(("last_change", "records", "edits", "not_learned", "left_out"), 2)
    last_change = project.ledger.last_change()
    project.record_evaluation("s", {}, old, last_change, [])
    project.close()
    with sqlite3.connect(tmp_path / "p" / "scen.db") as db:  # as the first version wrote it
        db.execute("alter table edits drop column expert")
        db.execute("alter table evaluations drop column samples")
        db.execute("delete from _sqlite_migrations where name = 'share_experts_and_keep_samples'")
    db.close()
    again = Project(tmp_path / "p")
    assert [edit.expert for edit in again.ledger.edits()] == [1, 2]
    assert again.merged().experts == [2]
    assert verify(again) == []
    [evaluation] = again.ledger.evaluations()
    assert evaluation["metrics"]["figures"]["reliability"]["patched"] == share
    assert evaluation["metrics"]["theta"] == 0.65
    page = as_markdown(gather(again))
    assert "| Reliability | 50.0 % | 1/2 | 10.0 to 90.0 |" in page
    again.close()
    assert [edit.expert for edit in Project(tmp_path / "p").ledger.edits()] == [1, 2]  # it was written, not only read
