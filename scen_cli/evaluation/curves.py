"""Figures as a function of the number of edits and of the threshold, and the edits that answered other prompts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from scen_cli.evaluation.cached_generator import CachedGenerator
from scen_cli.evaluation.metrics import Share
from scen_cli.evaluation.samples import NEAR_THETA, PAPER_ROLES, Probe, Sample, Scored

RETENTION_AT = (10, 50, 100, 200, 500, 1000, 2000, 5000, 10_000)
MAP_SIZE = 100  # edits drawn in an activation map


def retention(generator: CachedGenerator, scored: Sequence[Scored]) -> list[dict[str, Any]]:
    """Reliability of edits 1..t when only those existed, at t = 10, 50, 100, ... and at the end.

    Later edits never change a neuron or an expert. The model after t edits is therefore the present one, routing to
    its first t experts alone.
    """
    in_order = sorted(scored, key=lambda item: item.edit.id)
    curve = []
    for t in [t for t in RETENTION_AT if t < len(in_order)] + [len(in_order)]:
        first_edits = in_order[:t]
        newest = first_edits[-1].edit.id
        experts = sum(expert <= newest for expert in generator.patch.edits)
        prompts = [item.record.prompt for item in first_edits]
        answers = generator.texts(prompts, generator.route(prompts, first=experts))
        right = [
            item.edit.state != "failed" and answer == item.record.target
            for answer, item in zip(answers, first_edits, strict=True)
        ]
        curve.append({"edits": t, "reliability": asdict(Share.of(right))})
    return curve


def theta_sweep(generator: CachedGenerator, probes: Sequence[Probe], thetas: Sequence[float]) -> list[dict[str, Any]]:
    """Reliability, Generality and Locality at each threshold (the paper's Fig. 4).

    At any threshold either the expert with the largest activation answers, or the base: two answers for each prompt.
    """
    probes = [probe for probe in probes if probe.role in PAPER_ROLES]
    prompts = [probe.prompt for probe in probes]
    strongest = generator.strongest(prompts)
    lowest = min(thetas)
    limits = [
        probe.tokens_needed(activation, lowest + NEAR_THETA)
        for probe, (_, activation) in zip(probes, strongest, strict=True)
    ]
    of_base = generator.texts(prompts, [None] * len(prompts), limits)
    experts = [expert if activation > lowest else None for expert, activation in strongest]
    of_expert = generator.texts(prompts, experts, limits)
    rows = []
    for theta in thetas:
        right: dict[str, list[bool]] = {role: [] for role in PAPER_ROLES}
        for probe, (_expert, activation), base, expert in zip(probes, strongest, of_base, of_expert, strict=True):
            right[probe.role].append(probe.is_right(expert if activation > theta else base, base))
        rows.append({"theta": theta, **{role: asdict(Share.of(outcomes)) for role, outcomes in right.items()}})
    return rows


def thetas_around(theta: float) -> list[float]:
    """The threshold, and ten steps of 0.01 to either side, within (0, 1)."""
    steps = range(round(-100 * NEAR_THETA), round(100 * NEAR_THETA) + 1)
    return [round(theta + step / 100, 4) for step in steps if 0 < theta + step / 100 < 1]


def activation_map(generator: CachedGenerator, scored: Sequence[Scored]) -> dict[str, Any]:
    """Activations of the first experts' neurons (columns) on the first edits' prompts (rows): Fig. 3."""
    trained = [item for item in scored if item.edit.expert is not None]
    trained = sorted(trained, key=lambda item: item.edit.id)[:MAP_SIZE]
    experts = sorted({item.edit.expert for item in trained if item.edit.expert is not None})
    columns = [generator.patch.edits.index(expert) for expert in experts]
    activations = generator.activations([item.record.prompt for item in trained])[:, columns]
    rounded = [[round(value, 3) for value in row] for row in activations.tolist()]
    return {"edits": [item.edit.id for item in trained], "experts": experts, "activations": rounded}


def confusions(samples: Sequence[Sample]) -> list[dict[str, Any]]:
    """Which edits answered prompts of other edits (`of`; None: of no edit), and how many; most first."""
    counts = Counter(
        (sample.routed_edit, sample.expected_edit)
        for sample in samples
        if sample.routed_edit not in (None, sample.expected_edit) and sample.role != "portability"
    )
    return [{"edit": edit, "of": other, "prompts": count} for (edit, other), count in counts.most_common()]
