"""Formats measures (shares and means, as dictionaries) for pages, model cards and terminals."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

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
