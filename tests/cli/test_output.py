"""What commands print of text that is not their own."""

from __future__ import annotations

import json

from scen_cli.cli.output import Output, harmless, print_error, table

SLY = "a\x1b[2J\x07\x9b31m\u202eb"
SHOWN = "a\\x1b[2J\\x07\\x9b31m\\u202eb"


def test_what_would_steer_a_terminal_is_written_out():
    assert harmless(SLY) == SHOWN
    assert (
        harmless("two\nlines\tand [red]markup[/red], Ünïcödé 漢字") == "two\nlines\tand [red]markup[/red], Ünïcödé 漢字"
    )


def test_nothing_that_is_printed_steers_a_terminal(capsys):
    out = Output()
    out.result({}, SLY, table(("x", ""), [(SLY, 1)]))
    out.note(SLY)
    out.warn(SLY)
    print_error(SLY, SLY)
    told = capsys.readouterr()
    assert (told.out.count(SHOWN), told.err.count(SHOWN)) == (2, 4)
    assert "\x1b" not in told.out + told.err


def test_json_says_the_same_with_escapes(capsys):
    Output(as_json=True).result({"prompt": SLY + "\x7f é"})
    printed = capsys.readouterr().out
    assert json.loads(printed) == {"prompt": SLY + "\x7f é"}
    assert not set(printed) & {"\x1b", "\x9b", "\x7f", "\u202e"}
    assert "é" in printed
