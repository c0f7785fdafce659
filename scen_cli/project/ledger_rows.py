"""Rows of the ledger as typed objects. A ledger from elsewhere is not trusted: each row is checked as it is read."""

from __future__ import annotations

import json
from typing import Any

from pydantic import ConfigDict, ValidationError
from pydantic.dataclasses import dataclass

from scen_cli.errors import VERIFY_HINT, DamageFound

LISTS = ("rephrases", "expert_losses", "neuron_losses", "train_rephrases", "subject_forms")  # JSON columns of an edit
CHECKED = ConfigDict(strict=True)  # losses of a failed edit may be infinite
FINITE = ConfigDict(strict=True, allow_inf_nan=False)


@dataclass(frozen=True, config=CHECKED)
class Edit:
    """One row of the `edits` table; `schema.py` describes the columns."""

    id: int
    prompt: str
    target: str
    subject: str | None
    rephrases: tuple[str, ...]
    state: str
    superseded_by: int | None
    reason: str | None
    file: str | None
    sha256: str | None
    size: int | None
    expert_losses: tuple[float, ...]
    neuron_losses: tuple[float, ...]
    activation: float | None
    seed: int
    seconds: float
    created: str
    source: str
    source_line: int
    expert: int | None
    bias: float | None
    train_rephrases: tuple[str, ...]
    rank: int | None
    subject_forms: tuple[tuple[int, ...], ...]
    index_sha256: str | None

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> Edit:
        """Raises `DamageFound` if a column holds another type."""
        lists = {name: decoded(f"`{name}` of edit {row['id']}", row[name]) for name in LISTS}
        try:
            subject_forms = tuple(map(tuple, lists.pop("subject_forms")))
            tuples = {name: tuple(value) if isinstance(value, list) else value for name, value in lists.items()}
            columns = {name: row[name] for name in cls.__dataclass_fields__}
            return cls(**{**columns, **tuples, "subject_forms": subject_forms})
        except (TypeError, ValueError, RecursionError) as error:
            raise unreadable(f"edit {row.get('id')}", error) from error


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

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> Threshold:
        """Raises `DamageFound` if a column holds another type."""
        try:
            return cls(**{name: row[name] for name in cls.__dataclass_fields__})
        except ValidationError as error:
            raise unreadable("theta", error) from error


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
