"""How the figures move: with the number of edits, and with the threshold; and which edits take whose prompts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from scen_cli.evaluation.cached_generator import CachedGenerator
from scen_cli.evaluation.metrics import Share
from scen_cli.evaluation.samples import PAPERS_ROLES, Asked, Sample, Scored

RETENTION_AT = (10, 50, 100, 200, 500, 1000, 2000, 5000, 10_000)
MAP_SIZE = 100  # edits drawn in an activation map


def retention(asker: CachedGenerator, scored: Sequence[Scored]) -> list[dict[str, Any]]:
    """Reliability of edits 1..t when only those were there, at t = 10, 50, 100, ... and at the end.

    A neuron is never moved by later edits and an expert never changes, so the model after t edits
    is the one whose routing knows its first t experts.
    """
    in_order = sorted(scored, key=lambda one: one.edit.id)
    curve = []
    for t in [t for t in RETENTION_AT if t < len(in_order)] + [len(in_order)]:
        known = in_order[:t]
        newest = known[-1].edit.id
        first = sum(expert <= newest for expert in asker.patch.edits)
        prompts = [one.record.prompt for one in known]
        answers = asker.texts(prompts, asker.route(prompts, first=first))
        learned = [one.edit.state != "failed" for one in known]
        right = [ok and answer == one.record.target for ok, answer, one in zip(learned, answers, known, strict=True)]
        curve.append({"edits": t, "reliability": asdict(Share.of(right))})
    return curve


def theta_sweep(asker: CachedGenerator, asked: Sequence[Asked], thetas: Sequence[float]) -> list[dict[str, Any]]:
    """Reliability, Generality and Locality at each threshold (the paper's Fig. 4).

    At any threshold the strongest neuron's expert answers, or the base: two answers for each prompt.
    """
    asked = [one for one in asked if one.role in PAPERS_ROLES]
    prompts = [one.prompt for one in asked]
    strongest = asker.strongest(prompts)
    by_base = asker.texts(prompts, [None] * len(prompts))
    lowest = min(thetas)
    by_expert = asker.texts(prompts, [expert if activation > lowest else None for expert, activation in strongest])
    rows = []
    for theta in thetas:
        right: dict[str, list[bool]] = {role: [] for role in PAPERS_ROLES}
        for one, (_expert, activation), base, other in zip(asked, strongest, by_base, by_expert, strict=True):
            answer = other if activation > theta else base
            right[one.role].append(one.is_right(answer, base))
        rows.append({"theta": theta, **{role: asdict(Share.of(outcomes)) for role, outcomes in right.items()}})
    return rows


def thetas_around(theta: float) -> list[float]:
    """The threshold and ten hundredths to either side, as far as they can be thresholds."""
    return [round(theta + step / 100, 4) for step in range(-10, 11) if 0 < theta + step / 100 < 1]


def activation_map(asker: CachedGenerator, scored: Sequence[Scored]) -> dict[str, Any]:
    """Activations of the first experts' neurons (across) on the first edits' prompts (down): Fig. 3."""
    known = sorted((one for one in scored if one.edit.expert is not None), key=lambda one: one.edit.id)[:MAP_SIZE]
    columns = sorted({one.edit.expert for one in known if one.edit.expert is not None})
    places = [asker.patch.edits.index(expert) for expert in columns]
    activations = asker.activations([one.record.prompt for one in known])[:, places]
    rounded = [[round(value, 3) for value in row] for row in activations.tolist()]
    return {"edits": [one.edit.id for one in known], "experts": columns, "activations": rounded}


def confusions(samples: Sequence[Sample]) -> list[dict[str, Any]]:
    """Which edits took prompts that were not theirs, most first: whose (None: nobody's), and how often."""
    taken = Counter(
        (sample.fired, sample.expected_edit)
        for sample in samples
        if sample.fired is not None and sample.fired != sample.expected_edit and sample.role != "portability"
    )
    return [
        {"edit": fired, "of": expected_edit, "prompts": count} for (fired, expected_edit), count in taken.most_common()
    ]
