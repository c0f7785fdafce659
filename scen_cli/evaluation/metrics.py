"""Figures with their counts and 95 % intervals: shares of right answers, and means."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import isfinite, sqrt
from typing import Any

Z = 1.959964  # of a 95 % interval


@dataclass(frozen=True)
class Share:
    """`right` of `total`, with the 95 % Wilson score interval; all three None when total is 0."""

    right: int
    total: int
    share: float | None
    low: float | None
    high: float | None

    @classmethod
    def of(cls, outcomes: Sequence[bool]) -> Share:
        right, total = sum(outcomes), len(outcomes)
        if not total:
            return cls(0, 0, None, None, None)
        return cls(right, total, right / total, *wilson(right, total))

    @property
    def value(self) -> float | None:
        return self.share

    def __str__(self) -> str:
        if self.share is None or self.low is None or self.high is None:
            return "-"
        return f"{100 * self.share:.1f} % ({self.right}/{self.total}; {100 * self.low:.1f} to {100 * self.high:.1f})"


@dataclass(frozen=True)
class Mean:
    """The mean of `total` values, none of them negative, with its 95 % interval by the normal law; all None
    when total is 0."""

    total: int
    mean: float | None
    low: float | None
    high: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> Mean:
        total = len(values)
        if not total:
            return cls(0, None, None, None)
        mean = sum(values) / total
        if total == 1 or not isfinite(mean):
            return cls(total, mean, mean, mean)
        spread = Z * sqrt(sum((value - mean) ** 2 for value in values) / (total - 1) / total)
        return cls(total, mean, max(0.0, mean - spread), mean + spread)

    @property
    def value(self) -> float | None:
        return self.mean

    def __str__(self) -> str:
        if self.mean is None:
            return "-"
        return f"{self.mean:.4g} ({self.total}; {self.low:.4g} to {self.high:.4g})"


Measure = Share | Mean


@dataclass(frozen=True)
class Figure:
    """One line of a table: of the patched model, of the base, and what routing did on the same prompts.

    `fired`: any edit did. `routed`: the right one did (None where no edit is the right one).
    """

    patched: Measure
    base: Measure | None = None
    fired: Share | None = None
    routed: Share | None = None

    def as_dict(self) -> dict[str, Any]:
        return {name: asdict(measure) for name, measure in vars(self).items() if measure is not None}


def wilson(right: int, total: int, z: float = Z) -> tuple[float, float]:
    """Wilson's score interval of a share, 95 % by default. It stays within [0, 1] at the ends,
    where editing figures live and the usual normal interval does not."""
    share = right / total
    centre = share + z * z / (2 * total)
    spread = z * sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    scale = 1 + z * z / total
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)
