"""A report as one HTML page: no network, no script, everything in the file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from scen_cli.report import pictures, wording
from scen_cli.report.markdown import describe, model_name

LISTED = 300  # edits written out


def as_page(found: Mapping[str, Any]) -> str:
    """The page from what `gather` gives; without pictures where matplotlib is not installed."""
    templates = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    helpers = {name: getattr(wording, name) for name in ("value", "counted", "interval", "title")}
    evaluations = [
        {**one, "pictures": _pictures(one), "about": describe(one["metrics"])} for one in found["evaluations"]
    ]
    return templates.get_template("page.html").render(
        {**found, "evaluations": evaluations, "model": model_name(found["settings"]), "listed": LISTED, **helpers}
    )


def _pictures(evaluation: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What an evaluation's curves show: a heading, the picture, and what it says."""
    if not pictures.has_matplotlib():
        return []
    curves, metrics = evaluation["curves"], evaluation["metrics"]
    drawn = []
    if len(curves.get("retention", [])) > 1:
        figure = pictures.lines(curves["retention"], "edits", "edits made")
        text = "Reliability of edits 1 to t, measured when there were t: a fall is forgetting."
        drawn.append(("Retention", figure, text))
    if curves.get("theta"):
        mark = (metrics["theta"], f"theta {metrics['theta']}")
        figure = pictures.lines(curves["theta"], "theta", "threshold theta", mark, markers=False)
        text = "The three figures if the threshold were another; the dashed line is the project's own."
        drawn.append(("Threshold", figure, text))
    if curves.get("activations", {}).get("edits"):
        size = len(curves["activations"]["edits"])
        figure = pictures.activation_maps({f"the first {size} edits": curves["activations"]})
        text = "Each edit's prompt (down) and every neuron's activation on it (across): a bright diagonal is wanted."
        drawn.append(("Activations", figure, text))
    return [{"title": name, "svg": Markup(pictures.as_svg(figure)), "text": text} for name, figure, text in drawn]
