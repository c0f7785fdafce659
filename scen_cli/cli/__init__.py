"""The `scen` command: one file per command, each thin: parse, call, print.

Nothing heavier than Typer and Rich is imported here; a command imports what it needs when it runs.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperGroup

from scen_cli._version import __version__
from scen_cli.cli import (
    ask,
    backup,
    cache,
    calibrate,
    compare,
    compress,
    confusions,
    data,
    demo,
    edit,
    evaluate,
    export,
    init,
    merge,
    rebuild,
    report,
    revert,
    serve,
    status,
    study,
    verify,
)
from scen_cli.cli.failures import explain
from scen_cli.cli.output import Output, print_error


class _Commands(TyperGroup):
    """Turns expected exceptions into a message, the next command to try, and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        as_json = "--json" in [*getattr(ctx, "_protected_args", ()), *ctx.args]
        Output.has_result = False
        try:
            return super().invoke(ctx)
        except (Exception, KeyboardInterrupt) as error:
            explained = explain(error)
            if explained is None:
                raise
            message, hint, exit_code = explained
            print_error(message, hint)
            if as_json and not Output.has_result:
                Output(as_json=True).result({"error": message, "hint": hint, "exit_code": exit_code})
            raise typer.Exit(exit_code) from error


app = typer.Typer(
    cls=_Commands,
    name="scen",
    help="Correct what a large language model gets wrong, one fact at a time, without retraining it.",
    epilog="Start with `scen demo`, or with `scen init --model PATH --layer N`.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"scen {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: bool = typer.Option(False, "--version", callback=_print_version, is_eager=True, help="Show the version."),
) -> None:
    pass


app.command("demo")(demo.demo)
app.command("init")(init.init)
app.command("edit")(edit.edit)
app.command("merge")(merge.merge)
app.command("eval")(evaluate.evaluate)
app.command("ask")(ask.ask)
app.command("calibrate")(calibrate.calibrate)
app.command("confusions")(confusions.confusions)
app.command("compare")(compare.compare)
app.command("compress")(compress.compress)
app.command("export")(export.export)
app.command("serve")(serve.serve)
app.command("status")(status.status)
app.command("log")(status.log)
app.command("show")(status.show)
app.command("report")(report.report)
app.command("revert")(revert.revert)
app.command("verify")(verify.verify)
app.command("backup")(backup.backup)
app.command("restore")(backup.restore)
app.command("rebuild")(rebuild.rebuild)
app.command("cache")(cache.cache)
app.command("gc")(backup.gc)
app.add_typer(data.app, name="data")
app.add_typer(study.app, name="study")


def main() -> None:
    # With a closed standard stream (`scen edit >&-`) Python has none: what a command does must not depend on it.
    with Path(os.devnull).open("w", encoding="utf-8") as nowhere:
        sys.stdout, sys.stderr = sys.stdout or nowhere, sys.stderr or nowhere
        app()
