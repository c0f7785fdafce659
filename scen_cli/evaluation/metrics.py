"""Shares of right answers, with their counts and intervals."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from math import sqrt


@dataclass(frozen=True)
class Share:
    """`right` of `total`, with the 95 % Wilson score interval; all three None when total is 0."""

    right: int
    total: int
    share: float | None
    low: float | None
    high: float | None

    @classmethod
    def of(cls, outcomes: list[bool]) -> Share:
        right, total = sum(outcomes), len(outcomes)
        if not total:
            return cls(0, 0, None, None, None)
        return cls(right, total, right / total, *wilson(right, total))

    def as_dict(self) -> dict[str, float | int | None]:
        return asdict(self)

    def __str__(self) -> str:
        if self.share is None or self.low is None or self.high is None:
            return "-"
        return f"{100 * self.share:.1f} % ({self.right}/{self.total}; {100 * self.low:.1f} to {100 * self.high:.1f})"


def wilson(right: int, total: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's score interval of a share, 95 % by default. It stays within [0, 1] at the ends,
    where editing figures live and the usual normal interval does not."""
    share = right / total
    centre = share + z * z / (2 * total)
    spread = z * sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    scale = 1 + z * z / total
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)
