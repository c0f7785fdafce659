"""A report as one HTML file without scripts and external resources."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

from scen_cli.report import pictures
from scen_cli.report.markdown import describe, load_template, model_name

MAX_LISTED = 300  # edits on the page


def as_page(report: Mapping[str, Any]) -> str:
    """Write the result of `gather` as HTML. The page has pictures if matplotlib is installed."""
    evaluations = [
        {**evaluation, "pictures": _pictures(evaluation), "description": describe(evaluation["metrics"])}
        for evaluation in report["evaluations"]
    ]
    template = load_template(Path(__file__).with_name("page.html"), autoescape=True)
    model = model_name(report["settings"])
    return template.render(report, evaluations=evaluations, model=model, max_listed=MAX_LISTED)


def _pictures(evaluation: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The pictures of an evaluation's curves, with a title and a description."""
    if not pictures.has_matplotlib():
        return []
    curves, theta = evaluation["curves"], evaluation["metrics"].get("theta")
    drawn = []
    if len(curves.get("retention", [])) > 1:
        text = "Reliability of edits 1 to t after t edits. If the line falls, later edits damage earlier ones."
        drawn.append(("Retention", pictures.lines(curves["retention"], "edits", "number of edits t"), text))
    if curves.get("theta"):
        figure = pictures.lines(curves["theta"], "theta", "threshold theta", (theta, f"theta {theta}"), markers=False)
        text = "The figures of the paper at other thresholds. The dashed line is the project's threshold."
        drawn.append(("Threshold", figure, text))
    if curves.get("activations", {}).get("edits"):
        size = len(curves["activations"]["edits"])
        figure = pictures.activation_maps({f"the first {size} edits": curves["activations"]})
        text = "Activation of each neuron (column) on each edit's prompt (row). Only the diagonal should be bright."
        drawn.append(("Activations", figure, text))
    return [{"title": title, "svg": Markup(pictures.as_svg(figure)), "text": text} for title, figure, text in drawn]
