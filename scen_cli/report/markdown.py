"""A report as Markdown, for a terminal, a pull request, or a model card."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

Measure = Mapping[str, Any]
_TITLES = {
    "generality-given-expert": "Generality, right expert given",
    "wikibio-e-given-expert": "WikiBio-E, right expert given",
    "wikibio-e": "WikiBio-E",
    "wikibio-a": "WikiBio-A",
    "openwebtext": "OpenWebText",
    "drift-changed": "Output changed",
    "drift-kl": "KL of the next token, nats",
    "token-accuracy": "Target tokens",
}
MAX_LISTED = 50  # edits in the report
OUTDATED = "The edits changed after this evaluation: run `scen eval` again."


def value(measure: Measure | None) -> str:
    """`98.0 %` for a share, `1.234` for a mean, `-` without data."""
    if measure is None or not measure["total"]:
        return "-"
    return f"{measure['mean']:.4g}" if "mean" in measure else f"{100 * measure['share']:.1f} %"


def count(measure: Measure | None) -> str:
    """`98/100` for a share, `100` for a mean."""
    if measure is None or not measure["total"]:
        return ""
    return str(measure["total"]) if "mean" in measure else f"{measure['right']}/{measure['total']}"


def interval(measure: Measure | None) -> str:
    """`93.0 to 99.4`: the 95 % interval."""
    if measure is None or not measure["total"] or measure.get("low") is None:
        return ""
    low, high = measure["low"], measure["high"]
    return f"{low:.4g} to {high:.4g}" if "mean" in measure else f"{100 * low:.1f} to {100 * high:.1f}"


def title(name: str) -> str:
    """The heading of a figure: `near-miss` as `Near miss`."""
    return _TITLES.get(name) or name.replace("-", " ").replace("_", " ").capitalize()


def as_markdown(report: Mapping[str, Any]) -> str:
    """Write the result of `gather` as Markdown, without pictures."""
    settings, edits = report["settings"], report["edits"]
    overview = [
        ("base", f"{model_name(settings)} (weights sha256 {settings['weights_digest'][:16]})"),
        ("layer", f"{settings['layer']} ({settings['module']})"),
        ("recipe", report["recipe"]),
        ("edits", ", ".join(f"{number} {state}" for state, number in report["states"].items()) or "no edits yet"),
        *report["costs"],
    ]
    rows = [(edit.id, edit.state, edit.prompt, edit.target) for edit in edits[:MAX_LISTED]]
    template = load_template(Path(__file__).with_name("report.md"), autoescape=False)
    return template.render(report, overview=overview, rows=rows)


def load_template(file: Path, *, autoescape: bool) -> Template:
    """A template of a report or a model card, with the functions of this module. An undefined name is an error."""
    environment = Environment(
        loader=FileSystemLoader(file.parent),
        autoescape=autoescape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=not autoescape,
    )
    functions = (value, count, interval, title, table, figures_table, describe, model_name)
    environment.globals.update({function.__name__: function for function in functions}, outdated=OUTDATED)
    environment.filters.update(cell=_cell, code=_code)
    return environment.get_template(file.name)


def describe(metrics: Mapping[str, Any]) -> str:
    """One sentence about how the figures were measured."""
    decoding = metrics["decoding"]
    how = decoding if decoding == "teacher-forced" else f"{decoding} decoding, exact match"
    edited = f"{metrics['edits']} of its {metrics['records']} records edited ({metrics['not_learned']} not learned)"
    return f"{edited}, {how}, after the last edit."


def figures_table(figures: Mapping[str, Any]) -> str:
    """A table with a row for each figure."""
    rows = [
        (
            title(name),
            value(figure["patched"]),
            count(figure["patched"]),
            interval(figure["patched"]),
            value(figure.get("base")),
            value(figure.get("fired")),
        )
        for name, figure in figures.items()
    ]
    return table(("", "patched", "count", "95 % interval", "base", "routed to an edit"), rows)


def table(columns: tuple[str, ...], rows: list[tuple[Any, ...]]) -> str:
    lines = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    lines += [f"| {' | '.join(_cell(cell) for cell in row)} |" for row in rows]
    return "\n".join(lines)


def model_name(settings: Mapping[str, Any]) -> str:
    """The name of the base; for a local folder only its last part."""
    name = str(settings["model"])
    return Path(name).name if Path(name).is_absolute() else name


def _cell(cell: object) -> str:
    """Escape text from users, which may break the table or insert HTML, images and links."""
    text = str(cell).replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ")
    return text.replace("<", "&lt;").replace("`", "\\`").replace("![", "!\\[").replace("](", "]\\(")


def _code(text: str) -> str:
    return "`" + text.replace("`", "'").replace("\n", " ") + "`"
