"""Figures as words, for pages, model cards and terminals."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Measure = Mapping[str, Any]


def value(measure: Measure | None) -> str:
    """`98.0 %` of a share, `1.234` of a mean, `-` of nothing."""
    if measure is None or not measure["total"]:
        return "-"
    if "mean" in measure:
        return f"{measure['mean']:.4g}"
    return f"{100 * measure['share']:.1f} %"


def counted(measure: Measure | None) -> str:
    """`98/100`, or of a mean how many values."""
    if measure is None or not measure["total"]:
        return ""
    return str(measure["total"]) if "mean" in measure else f"{measure['right']}/{measure['total']}"


def interval(measure: Measure | None) -> str:
    """`93.0 to 99.4`: the 95 % interval."""
    if measure is None or not measure["total"] or measure.get("low") is None:
        return ""
    if "mean" in measure:
        return f"{measure['low']:.4g} to {measure['high']:.4g}"
    return f"{100 * measure['low']:.1f} to {100 * measure['high']:.1f}"


def title(name: str) -> str:
    """`generality-given-expert` as `Generality, right expert given`."""
    known = {
        "generality-given-expert": "Generality, right expert given",
        "wikibio-e-given-expert": "WikiBio-E, right expert given",
        "wikibio-e": "WikiBio-E",
        "wikibio-a": "WikiBio-A",
        "openwebtext": "OpenWebText",
        "drift-changed": "Output changed",
        "drift-kl": "KL of the next token, nats",
        "token-accuracy": "Target tokens",
    }
    return known.get(name) or name.replace("-", " ").replace("_", " ").capitalize()
