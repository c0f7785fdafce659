"""One evaluation against an earlier one: which figures moved, and which prompts are answered otherwise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Change:
    """A prompt that is answered otherwise than before; `verdict`: won, lost, or changed from one wrong
    answer to another."""

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


def changes(before: Sequence[Mapping[str, Any]], now: Sequence[Mapping[str, Any]]) -> tuple[list[Change], int]:
    """Samples (as dicts) of two evaluations of one suite, prompt by prompt, and how many prompts of either
    the other did not ask. An edit may have another number by now: prompts are matched by what they are."""
    earlier: dict[tuple[str, str, str], list[Mapping[str, Any]]] = {}
    for sample in before:
        earlier.setdefault(_name(sample), []).append(sample)
    found, alone = [], 0
    for sample in now:
        same = earlier.get(_name(sample))
        if not same:
            alone += 1
            continue
        old = same.pop(0)
        if old["right"] == sample["right"] and old["patched"] == sample["patched"]:
            continue
        verdict = "changed" if old["right"] == sample["right"] else "won" if sample["right"] else "lost"
        about = {name: sample[name] for name in ("role", "kind", "prompt", "edit", "wanted")}
        found.append(Change(**about, before=old["patched"], now=sample["patched"], verdict=verdict))
    return found, alone + sum(map(len, earlier.values()))


def moved(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[tuple[str, float | None, float | None]]:
    """(figure, value before, value now) of every figure of either evaluation; None where it was not measured."""
    names = dict.fromkeys([*now, *before])
    return [(name, _value(before.get(name)), _value(now.get(name))) for name in names]


def _name(sample: Mapping[str, Any]) -> tuple[str, str, str]:
    return sample["role"], sample["kind"], sample["prompt"]


def _value(figure: Mapping[str, Any] | None) -> float | None:
    if figure is None:
        return None
    patched = figure["patched"]
    value: float | None = patched.get("share", patched.get("mean"))
    return value
