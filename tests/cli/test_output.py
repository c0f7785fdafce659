"""What commands print: results, notes, progress, and text that is not their own."""

from __future__ import annotations

import json
import shutil
import time

import pytest

from scen_cli.cli.output import Output, counted, harmless, print_error, table

CONTROLS = "a\x1b[2J\x07\x9b31m\u202eb"
SOON = 0.1  # seconds
ESCAPED = "a\\x1b[2J\\x07\\x9b31m\\u202eb"


def test_harmless_escapes_control_characters_only():
    text = "two\nlines\tand [red]markup[/red], Ünïcödé 漢字"
    assert harmless(CONTROLS) == ESCAPED
    assert harmless(text) == text


def test_nothing_that_is_printed_controls_a_terminal(capsys):
    out = Output()
    out.result({}, CONTROLS, table(("x", ""), [(CONTROLS, 1)]))
    out.note(CONTROLS)
    out.warn(CONTROLS)
    print_error(CONTROLS, CONTROLS)
    printed = capsys.readouterr()
    assert (printed.out.count(ESCAPED), printed.err.count(ESCAPED)) == (2, 4)
    assert "\x1b" not in printed.out + printed.err


def test_json_escapes_control_characters(capsys):
    Output(as_json=True).result({"prompt": CONTROLS + "\x7f é"})
    printed = capsys.readouterr().out
    assert json.loads(printed) == {"prompt": CONTROLS + "\x7f é"}
    assert not set(printed) & {"\x1b", "\x9b", "\x7f", "\u202e"}
    assert "é" in printed


def test_quiet_prints_warnings_and_results_but_no_notes(capsys):
    out = Output(quiet=True)
    out.note("a note")
    out.warn("a warning")
    out.result({}, "a result")
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("a result\n", "a warning\n")


def lines_of(capsys) -> list[str]:
    printed = capsys.readouterr()
    assert printed.out == ""
    return printed.err.splitlines()


class TestInAPipe:
    """Against a real clock: `SOON` passes between two lines."""

    def test_work_is_never_silent_however_long_a_step_takes(self, capsys):
        with Output(report_seconds=SOON).working("loading") as update:
            time.sleep(2.5 * SOON)
            update("asking")
            time.sleep(2 * SOON)
        lines = lines_of(capsys)
        assert lines[:2] == ["loading (0 s)"] * 2
        assert lines[-1] == "asking (0 s)"

    def test_short_works_one_after_the_other_are_not_silent_together(self, capsys):
        out = Output(report_seconds=SOON)
        for what in ("loading", "asking", "scoring"):
            with out.working(what):
                time.sleep(0.6 * SOON)
        assert lines_of(capsys) == ["asking (0 s)"]

    def test_counting_shows_the_count_from_time_to_time(self, capsys):
        with Output(report_seconds=SOON).counting("answers") as progress:
            for number in range(1000):
                progress(number, 999)
            time.sleep(1.5 * SOON)
        assert lines_of(capsys) == ["999 of 999 answers (0 s)"]

    def test_counting_prints_nothing_before_the_time_has_passed(self, capsys):
        with Output(report_seconds=1000).counting("answers") as progress:
            progress(5, 9)
        assert lines_of(capsys) == []

    def test_progress_prints_lines_at_once_and_the_count_after_a_while(self, capsys):
        with Output(report_seconds=SOON).progress(3, "editing") as progress:
            progress("edit 1: who -> Ada", "0.10 s/edit")
            progress("", "0.20 s/edit")
            time.sleep(1.5 * SOON)
        assert lines_of(capsys) == ["edit 1: who -> Ada", "editing: 2 of 3, 0.20 s/edit (0 s)"]

    def test_nothing_is_reported_after_an_error(self, capsys):
        with pytest.raises(ValueError, match="broken"), Output(report_seconds=SOON).working("loading"):
            raise ValueError("broken")
        time.sleep(1.5 * SOON)
        assert lines_of(capsys) == []

    @pytest.mark.parametrize("report", ["counting", "progress"])
    def test_quiet_prints_no_progress(self, capsys, report):
        out = Output(quiet=True, report_seconds=SOON)
        with out.counting("answers") if report == "counting" else out.progress(2, "editing") as progress:
            progress(*((5, 9) if report == "counting" else ("a line", "0.1 s")))
            time.sleep(1.5 * SOON)
        assert lines_of(capsys) == []


def test_counted_adds_an_s_to_other_numbers_than_one():
    assert [counted(n, "problem") for n in (0, 1, 2)] == ["0 problems", "1 problem", "2 problems"]


def test_a_failure_under_json_is_a_json_object(scen, tmp_path):
    result = scen("status", "--json", "--dir", tmp_path / "none", code=10)
    failure = json.loads(result.stdout)
    assert failure["exit_code"] == 10
    assert "no scen project" in failure["error"]
    assert "scen init" in failure["hint"]
    assert "error: no scen project" in result.stderr
    assert scen("status", "--dir", tmp_path / "none", code=10).stdout == ""


def test_a_result_with_problems_stays_one_json_object(scen, edited, tmp_path):
    folder = shutil.copytree(edited.project.folder, tmp_path / "p")
    next((folder / "edits").iterdir()).unlink()
    assert json.loads(scen("verify", "--json", "--dir", folder, code=12).stdout)["problems"]
