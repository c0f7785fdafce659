"""Rows of the ledger as the program knows them. A ledger is not believed: every row is checked as it is read."""

from __future__ import annotations

import json
from typing import Any

from pydantic import ConfigDict, ValidationError
from pydantic.dataclasses import dataclass

from scen_cli.errors import VERIFY_HINT, DamageFound

LISTS = ("rephrases", "expert_losses", "neuron_losses", "train_rephrases", "subject_forms")  # JSON, of an edit
CHECKED = ConfigDict(strict=True)  # losses of an edit that failed may well be infinite
FINITE = ConfigDict(strict=True, allow_inf_nan=False)


@dataclass(frozen=True, config=CHECKED)
class Edit:
    """One row of the `edits` table."""

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
        """Raises `DamageFound` for a row that holds something else than it must."""
        lists = {name: decoded(f"`{name}` of edit {row['id']}", row[name] or "[]") for name in LISTS}
        try:
            subject_forms = tuple(map(tuple, lists.pop("subject_forms")))
            tuples = {name: tuple(value) if isinstance(value, list) else value for name, value in lists.items()}
            return cls(**{**row, **tuples, "subject_forms": subject_forms})
        except (TypeError, ValueError, RecursionError) as error:
            raise unreadable(f"edit {row.get('id')}", error) from error


@dataclass(frozen=True, config=FINITE)
class Threshold:
    """One row of the history of theta. A calibrated one knows the rate of `false_activation` it was set for,
    the rate to expect on fresh prompts with its 95 % interval, and how many guard prompts it was calibrated on."""

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
        """Raises `DamageFound` for a row that holds something else than it must."""
        try:
            return cls(**{name: row[name] for name in row if name != "id"})
        except ValidationError as error:
            raise unreadable("theta", error) from error


@dataclass(frozen=True, config=CHECKED)
class GuardPrompt:
    """A prompt that must stay the base's own, and its `split`: `fit` (neurons may learn from it), `calibration`
    (theta is set by it) or `report` (neither: what is said of theta is tried on it)."""

    id: int
    prompt: str
    split: str
    source: str


def decoded(what: str, text: Any) -> Any:
    """The JSON of a column. Raises `DamageFound`, which says of what it is, if it is none."""
    try:
        return json.loads(text)
    except (TypeError, ValueError, RecursionError) as error:
        raise unreadable(what, error) from error


def unreadable(what: str, error: object) -> DamageFound:
    """What to raise for a split of the ledger that is not what it must be."""
    said = str(error).splitlines()
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        said = [f"`{'.'.join(map(str, first['loc']))}`: {first['msg']}"]
    return DamageFound(f"{what} in `scen.db` cannot be read: {said[0] if said else error!r}", hint=VERIFY_HINT)
