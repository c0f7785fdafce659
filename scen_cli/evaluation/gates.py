"""Gates: `reliability>=0.99`. What a figure must reach for `scen eval` to end well."""

from __future__ import annotations

import operator
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scen_cli.errors import UsageError
from scen_cli.evaluation.metrics import Figure

_COMPARISONS = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt}
_GATE = re.compile(r"\s*([^<>=]+?)\s*(>=|<=|>|<)\s*([0-9.eE+-]+)\s*")
PAPER = ("reliability", "generality", "locality", "generality-given-expert")
SENTENCES = ("reliability-contains", "generality-contains", "reliability-runs-on", "generality-runs-on", "leak")
FURTHER = ("portability", "near-miss", "robustness", "drift-changed", "drift-kl", "token-accuracy")
PERPLEXITIES = ("wikibio-e", "wikibio-a", "openwebtext", "wikibio-e-given-expert")


@dataclass(frozen=True)
class Gate:
    """A figure of the patched model by name, how to compare it, and with what."""

    figure: str
    comparison: str
    bound: float

    def __str__(self) -> str:
        return f"{self.figure}{self.comparison}{self.bound:g}"


def parse_gates(texts: Sequence[str]) -> list[Gate]:
    """Raises `UsageError` for a gate that is no comparison of a figure with a number."""
    gates = []
    for text in texts:
        parts = _GATE.fullmatch(text)
        try:
            gates.append(Gate(parts[1], parts[2], float(parts[3])))  # type: ignore[index]
        except (TypeError, ValueError) as error:
            raise UsageError(f"gate `{text}` is not understood", hint="e.g. --gate 'reliability>=0.99'") from error
    return gates


def check_gates(gates: Sequence[Gate], known: Sequence[str]) -> None:
    """Before hours of scoring: raise `UsageError` for a gate on a figure that is none of the `known` (a kind
    may follow after a slash), or for a share outside 0 to 1."""
    for gate in gates:
        name = gate.figure.split("/")[0]
        if name not in known:
            raise UsageError(f"gate `{gate}`: there is no such figure", hint=f"figures: {', '.join(known)}")
        if name not in ("drift-kl", *PERPLEXITIES) and not 0 <= gate.bound <= 1:
            raise UsageError(f"gate `{gate}`: {name} is a share, between 0 and 1")


def not_met(gates: Sequence[Gate], figures: Mapping[str, Figure]) -> list[str]:
    """A line for each gate that is not met; a figure that nothing was counted for meets no gate.

    Raises `UsageError` for a gate on a figure that there is not.
    """
    lines = []
    for gate in gates:
        if gate.figure not in figures:
            raise UsageError(f"gate `{gate}`: there is no such figure", hint=f"figures: {', '.join(figures)}")
        measure = figures[gate.figure].patched
        if measure.value is None:
            lines.append(f"gate `{gate}` is not met: {gate.figure} was not measured, there were no prompts for it")
            continue
        if not _COMPARISONS[gate.comparison](measure.value, gate.bound):
            lines.append(f"gate `{gate}` is not met: {gate.figure} is {measure}")
    return lines
