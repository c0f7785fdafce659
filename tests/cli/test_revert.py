"""`scen revert`."""

from __future__ import annotations

import json

from tests.cli.records import RECORDS


def test_revert_restores_the_answer_of_the_base(scen, edited_at):
    assert "39 active edits" in scen("revert", "1", *edited_at).stdout
    answer = json.loads(scen("ask", RECORDS[0].prompt, *edited_at, "--json").stdout)
    assert answer["edit"] != 1
    assert answer["patched"] == answer["base"]


def test_revert_reactivates_the_superseded_edit(scen, at):
    for target in ("Peru", "Cuba"):
        scen("edit", "--prompt", RECORDS[0].prompt, "--target", target, *at)
    printed = scen("revert", "2", *at).stdout
    assert "1 active edits; edit 1, which it had superseded, is active again" in printed
    assert json.loads(scen("ask", RECORDS[0].prompt, *at, "--json").stdout)["patched"] == "Peru"
    assert "0 active edits" in scen("revert", "1", *at).stdout
