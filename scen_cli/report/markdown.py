"""A report as Markdown: for a terminal, a pull request, a model card."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scen_cli.report.wording import counted, interval, title, value

LISTED = 50  # edits written out


def as_markdown(found: Mapping[str, Any]) -> str:
    """The whole report from what `gather` gives, without pictures."""
    settings = found["settings"]
    states = ", ".join(f"{count} {state}" for state, count in found["states"].items()) or "none yet"
    parts = [
        f"# Edits of {_cell(model_name(settings))}",
        table(
            ("", ""),
            [
                ("base", f"{model_name(settings)} (weights sha256 {settings['weights_digest'][:16]})"),
                ("layer", f"{settings['layer']} ({settings['module']})"),
                ("recipe", found["recipe"]),
                ("edits", states),
                *found["costs"],
            ],
        ),
    ]
    for evaluation in found["evaluations"]:
        parts += [f"## Suite {_cell(evaluation['suite'])}", describe(evaluation["metrics"])]
        if not evaluation["current"]:
            parts.append("**Edits were made or taken back since: these figures are from before: `scen eval` again.**")
        for section in evaluation["sections"]:
            parts += [f"### {section['title']}", section["about"], figures_table(section["figures"])]
    edits = [(e.id, e.state, e.prompt, e.target) for e in found["edits"][:LISTED]]
    parts += ["## Edits", table(("edit", "state", "prompt", "target"), edits)]
    if len(found["edits"]) > LISTED:
        parts.append(f"and {len(found['edits']) - LISTED} more.")
    return "\n\n".join(parts) + "\n"


def describe(metrics: Mapping[str, Any]) -> str:
    """How figures came about, in a sentence."""
    how = (
        "teacher-forced" if metrics["decoding"] == "teacher-forced" else f"{metrics['decoding']} decoding, exact match"
    )
    of = f"{metrics['edits']} of its {metrics['records']} records edited"
    return f"{of} ({metrics['not_learned']} not learned), {how}, after the last edit."


def figures_table(figures: Mapping[str, Any]) -> str:
    """A row for each figure: patched and base, with counts and intervals."""
    rows = [
        (
            title(name),
            value(figure["patched"]),
            counted(figure["patched"]),
            interval(figure["patched"]),
            value(figure.get("base")),
            value(figure.get("fired")),
        )
        for name, figure in figures.items()
    ]
    return table(("", "patched", "of", "95 % interval", "base", "an edit fired"), rows)


def table(columns: tuple[str, ...], rows: list[tuple[Any, ...]]) -> str:
    lines = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    lines += [f"| {' | '.join(_cell(cell) for cell in row)} |" for row in rows]
    return "\n".join(lines)


def model_name(settings: Mapping[str, Any]) -> str:
    """The base's name; of a local folder its last part alone."""
    name = str(settings["model"])
    return Path(name).name if Path(name).is_absolute() else name


def _cell(cell: object) -> str:
    text = str(cell).replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ")
    return text.replace("<", "&lt;").replace("`", "\\`").replace("![", "!\\[").replace("](", "]\\(")
