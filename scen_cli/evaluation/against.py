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


def changes(before: Sequence[Mapping[str, Any]], now: Sequence[Mapping[str, Any]]) -> list[Change]:
    """Samples (as dicts) of two evaluations of one suite, prompt by prompt; those of one alone are left out."""
    earlier = {_name(sample): sample for sample in before}
    found = []
    for sample in now:
        old = earlier.get(_name(sample))
        if old is None:
            continue
        was, is_now = old["patched"] == old["wanted"], sample["patched"] == sample["wanted"]
        if was == is_now and old["patched"] == sample["patched"]:
            continue
        verdict = "won" if is_now and not was else "lost" if was and not is_now else "changed"
        about = {name: sample[name] for name in ("role", "kind", "prompt", "edit", "wanted")}
        found.append(Change(**about, before=old["patched"], now=sample["patched"], verdict=verdict))
    return found


def moved(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[tuple[str, float | None, float | None]]:
    """(figure, value before, value now) of every figure of either evaluation; None where it was not measured."""
    names = dict.fromkeys([*now, *before])
    return [(name, _value(before.get(name)), _value(now.get(name))) for name in names]


def _name(sample: Mapping[str, Any]) -> tuple[Any, ...]:
    return sample["role"], sample["kind"], sample["prompt"], sample["edit"]


def _value(figure: Mapping[str, Any] | None) -> float | None:
    if figure is None:
        return None
    patched = figure["patched"]
    value: float | None = patched.get("share", patched.get("mean"))
    return value
