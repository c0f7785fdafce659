"""Rows of the ledger as typed objects. A ledger from elsewhere is not trusted: each row is checked as it is read."""

from __future__ import annotations

import json
from typing import Any, TypeVar

from pydantic import ConfigDict, Json, ValidationError
from pydantic.dataclasses import dataclass

from scen_cli.errors import VERIFY_HINT, DamageFound

CHECKED = ConfigDict(strict=True)  # losses of a failed edit may be infinite
FINITE = ConfigDict(strict=True, allow_inf_nan=False)
Row = TypeVar("Row")


@dataclass(frozen=True, config=CHECKED)
class Edit:
    """One row of the `edits` table; `schema.py` describes the columns."""

    id: int
    prompt: str
    target: str
    subject: str | None
    rephrases: Json[tuple[str, ...]]
    state: str
    superseded_by: int | None
    reason: str | None
    file: str | None
    sha256: str | None
    size: int | None
    expert_losses: Json[tuple[float, ...]]
    neuron_losses: Json[tuple[float, ...]]
    activation: float | None
    seed: int
    seconds: float
    created: str
    source: str
    source_line: int
    expert: int | None
    bias: float | None
    train_rephrases: Json[tuple[str, ...]]
    rank: int | None
    subject_names: Json[tuple[str, ...]]
    index_sha256: str | None


@dataclass(frozen=True, config=FINITE)
class Threshold:
    """One row of the threshold's history.

    Attributes:
        theta: The threshold.
        chosen_by: `init`, `calibration` or `hand`.
        created: UTC, ISO 8601.
        false_activation: The false-activation rate that it was calibrated for; None if it was not calibrated.
        fpr_expected: The rate to expect on fresh prompts.
        fpr_low: Lower end of its 95 % interval.
        fpr_high: Upper end.
        n_guard: How many guard prompts it was calibrated on.
    """

    theta: float
    chosen_by: str
    created: str
    false_activation: float | None = None
    fpr_expected: float | None = None
    fpr_low: float | None = None
    fpr_high: float | None = None
    n_guard: int | None = None


@dataclass(frozen=True, config=CHECKED)
class GuardPrompt:
    """A prompt that no edit may claim, and its `split`.

    Neurons may be fitted on the `fit` split, the threshold is calibrated on `calibration`, and the false-activation
    rate is measured on `report`.
    """

    id: int
    prompt: str
    split: str
    source: str


def read_row(kind: type[Row], what: str, row: dict[str, Any]) -> Row:
    """A row as an object. Raises `DamageFound`, naming `what`, if a column holds another type."""
    try:
        return kind(**{name: row[name] for name in kind.__dataclass_fields__})  # type: ignore[attr-defined]
    except (TypeError, ValueError) as error:
        raise unreadable(what, error) from error


def decoded(what: str, text: Any) -> Any:
    """The JSON of a column. Raises `DamageFound`, naming `what`, if it is not JSON."""
    try:
        return json.loads(text)
    except (TypeError, ValueError, RecursionError) as error:
        raise unreadable(what, error) from error


def unreadable(what: str, error: object) -> DamageFound:
    """The error to raise for a part of the ledger that cannot be read."""
    lines = str(error).splitlines()
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        lines = [f"`{'.'.join(map(str, first['loc']))}`: {first['msg']}"]
    return DamageFound(f"{what} in `scen.db` cannot be read: {lines[0] if lines else error!r}", hint=VERIFY_HINT)
