"""Write and print the result of `scen study`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from scen_cli.cli.output import Output, table
from scen_cli.errors import ScenError

if TYPE_CHECKING:
    from scen_cli.studies.paper_tables import StudyResult
    from scen_cli.studies.project_variants import StudyContext

MAX_ROWS = 20  # rows of a long table to print
NUMBERS = ("theta", "patched", "base", "own", "strongest other")  # columns that are not shares


def report(out: Output, title: str, name: str, result: StudyResult, context: StudyContext, folder: Path) -> None:
    """Write the result to files and print it. Shares are printed as percentages."""
    from scen_cli.studies.paper_tables import write_result

    if not result.rows:
        hint = "other rates may learn them, in a new project: `scen init --dir NEW --set expert_lr=0.01`"
        raise ScenError("none of the edits was learned: there is nothing to show", hint=hint)
    suite = context.suite
    metadata = {"study": name, "suite": suite.name, "edits": len(suite.edits), "decoding": context.decoding}
    metadata |= {"theta": context.theta}
    metadata |= {key: context.settings[key] for key in ("model", "weights_digest", "layer", "recipe", "seed")}
    files = write_result(name, result, metadata, folder)
    if result.note:
        out.warn(result.note)
    columns = [column for column in result.rows[0] if not column.endswith("_of")]
    rows = [[_cell(row, column) for column in columns] for row in result.rows]
    printed = rows if len(rows) <= MAX_ROWS else rows[:: len(rows) // MAX_ROWS]
    headline = f"{title}; here suite {suite.name}, {len(suite.edits)} edits"
    lines = table([f"{column}#" for column in columns], printed)
    out.result({**metadata, "rows": result.rows}, headline, lines, ", ".join(map(str, files)))


def _cell(row: dict[str, Any], column: str) -> str:
    """A share as `95.3 % (567/595)`, or `95.3 %` without its count; other numbers as they are."""
    value, total = row[column], row.get(f"{column}_of")
    if value is None or not isinstance(value, float):
        return "-" if value is None else str(value)
    if column in NUMBERS:
        return f"{value:.3f}"
    return f"{100 * value:.1f} %" + (f" ({round(value * total)}/{total})" if total else "")
