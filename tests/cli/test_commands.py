"""What holds for all commands: help, errors, `--json`, `--quiet`."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from scen_cli.cli import app
from tests.cli.records import RECORDS, lines

COMMANDS = [command.name for command in app.registered_commands]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_every_command_has_an_example(scen, command):
    assert f"Example: scen {command}" in " ".join(scen(command, "--help").stdout.split())


def test_main_help_names_every_command(scen):
    text = scen("--help").stdout
    assert all(command in text for command in COMMANDS)
    assert scen("--version").stdout.startswith("scen 0.")


def test_an_unknown_option_is_wrong_usage():
    assert CliRunner().invoke(app, ["status", "--colour"]).exit_code == 2


@pytest.mark.parametrize("command", [["status"], ["edit", "-"], ["ask", "x"], ["merge"], ["revert", "1"], ["verify"]])
def test_a_folder_without_a_project_is_an_error_with_a_hint(scen, tmp_path, command):
    result = scen(*command, "--dir", tmp_path, code=10, stdin=lines(RECORDS[0]))
    assert "no scen project" in result.stderr
    assert "scen init" in result.stderr


@pytest.mark.parametrize("command", ["show", "revert"])
def test_a_number_that_sqlite_cannot_hold_is_refused(scen, at, command):
    assert "too large" in scen(command, "99999999999999999999", *at, code=2).stderr


def test_with_json_stdout_is_one_json_value(scen, at):
    one_edit = ["edit", "--suite", "demo", "--first", "1"]
    for command in (["status"], ["log"], ["merge"], ["verify"], one_edit, ["ask", "x"]):
        json.loads(scen(*command, *at, "--json").stdout)


def test_quiet_prints_only_the_result(scen, at):
    result = scen("edit", "--suite", "demo", "--first", "1", "--quiet", *at)
    assert result.stderr == ""
    assert result.stdout == "1 edited, 0 skipped, 0 failed; 1 active edits\n"


def test_text_of_users_is_not_markup(scen, at):
    prompt = "[bold]Who[/bold] is [red]?"
    scen("edit", "--prompt", prompt, "--target", "Riga", *at)
    for command in (["status"], ["show", "1"], ["log"], ["ask", prompt]):
        assert prompt in scen(*command, *at).stdout


def test_merge_prints_shape_and_digest_and_is_deterministic(scen, edited_at):
    first = scen("merge", *edited_at).stdout
    assert "W_merge 40 x 768, sha256 " in first
    assert scen("merge", *edited_at).stdout == first
