"""Compare an evaluation with an earlier one: which figures changed, and which answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Change:
    """A prompt with another answer than before; `verdict`: `won`, `lost`, or `changed` (both right or both wrong)."""

    role: str
    kind: str
    prompt: str
    edit: int | None
    wanted: str
    before: str
    now: str
    verdict: str

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def changed_answers(before: Sequence[Mapping[str, Any]], now: Sequence[Mapping[str, Any]]) -> tuple[list[Change], int]:
    """The changed answers of two evaluations (samples as dicts), and how many prompts only one of them asked.

    Prompts are matched by role, kind and text: an edit may have another number by now.
    """
    earlier: dict[tuple[str, str, str], list[Mapping[str, Any]]] = {}
    for sample in before:
        earlier.setdefault(_key(sample), []).append(sample)
    changes, unmatched = [], 0
    for sample in now:
        same = earlier.get(_key(sample))
        if not same:
            unmatched += 1
            continue
        old = same.pop(0)
        if old["right"] == sample["right"] and old["patched"] == sample["patched"]:
            continue
        verdict = "changed" if old["right"] == sample["right"] else "won" if sample["right"] else "lost"
        fields = {name: sample[name] for name in ("role", "kind", "prompt", "edit", "wanted")}
        changes.append(Change(**fields, before=old["patched"], now=sample["patched"], verdict=verdict))
    return changes, unmatched + sum(map(len, earlier.values()))


def changed_figures(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[tuple[str, float | None, float | None]]:
    """(figure, value before, value now) of every figure of either evaluation; None where it was not measured."""
    names = dict.fromkeys([*now, *before])
    return [(name, _value(before.get(name)), _value(now.get(name))) for name in names]


def _key(sample: Mapping[str, Any]) -> tuple[str, str, str]:
    return sample["role"], sample["kind"], sample["prompt"]


def _value(figure: Mapping[str, Any] | None) -> float | None:
    if figure is None:
        return None
    patched = figure["patched"]
    value: float | None = patched.get("share", patched.get("mean"))
    return value
