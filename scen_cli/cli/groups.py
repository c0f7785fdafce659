"""`scen study` and `scen data`: groups of commands that are loaded only when they are called."""

from __future__ import annotations

import typer

# All that follows the group's name, options and `--help` too, is for the group itself.
PASSED_ON = {"ignore_unknown_options": True, "allow_extra_args": True, "allow_interspersed_args": False}


def study(context: typer.Context) -> None:
    """The paper's protocol, tables and figures on any base: `scen study --help`."""
    from scen_cli.cli.study import app

    _run(app, context)


def data(context: typer.Context) -> None:
    """Look into data files of any form the field uses, and convert them: `scen data --help`."""
    from scen_cli.cli.data import app

    _run(app, context)


def _run(app: typer.Typer, context: typer.Context) -> None:
    code = typer.main.get_command(app).main(
        args=context.args or ["--help"], prog_name=f"scen {context.info_name}", standalone_mode=False
    )
    if code:
        raise typer.Exit(code)
