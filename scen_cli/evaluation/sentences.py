"""Figures for bases that answer in sentences: the target inside an answer, and targets where they do not belong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from scen_cli.data.lexical_overlap import gains
from scen_cli.data.words import contains, plain
from scen_cli.evaluation.metrics import Figure, Share
from scen_cli.evaluation.samples import Probe, Sample


def runs_on(answer: str, target: str) -> bool:
    """Whether an answer that contains the target has more words behind it."""
    return contains(answer, target) and not f" {plain(answer)}".endswith(f" {plain(target)}")


def sentence_figures(
    probes: Sequence[Probe], samples: Sequence[Sample], targets: Mapping[int, Sequence[str]]
) -> dict[str, Figure]:
    """`ROLE-contains` and `ROLE-runs-on` of Reliability and Generality; `leak/locality` and `leak/KIND`.

    A prompt that must not change *leaks* if an edit was activated and the answer contains that edit's target, which the
    base's answer does not contain.

    Args:
        probes: What was asked.
        samples: The answer of each probe.
        targets: The targets of each expert's edits, by the number that `Sample.routed_edit` has.
    """
    figures = {}
    for role in ("reliability", "generality"):
        asked = [pair for pair in zip(probes, samples, strict=True) if pair[0].role == role]
        figures[f"{role}-contains"] = Figure(
            Share.of([probe.can_be_right() and contains(sample.patched, sample.wanted) for probe, sample in asked]),
            Share.of([contains(sample.base, sample.wanted) for _probe, sample in asked]),
        )
        figures[f"{role}-runs-on"] = Figure(
            Share.of([runs_on(sample.patched, sample.wanted) for _probe, sample in asked]),
            Share.of([runs_on(sample.base, sample.wanted) for _probe, sample in asked]),
        )
    leaks: dict[str, list[bool]] = {}
    for sample in samples:
        if sample.role in ("locality", "near-miss"):
            activated = targets.get(sample.routed_edit, ()) if sample.routed_edit is not None else ()
            leaked = any(gains(sample.base, sample.patched, text) for text in activated)
            leaks.setdefault(sample.kind or sample.role, []).append(leaked)
    return figures | {f"leak/{kind}": Figure(Share.of(leaked)) for kind, leaked in leaks.items()}
