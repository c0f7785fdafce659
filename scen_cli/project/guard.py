"""The guard on disk: prompts that no edit may claim (rows of the ledger), their keys and whitening (a file)."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from scen_cli.errors import VERIFY_HINT, DamageFound
from scen_cli.project.event_log import GUARD_FIELDS, digest_of_guard
from scen_cli.project.ledger import Ledger
from scen_cli.project.ledger_rows import GuardPrompt
from scen_cli.project.tensor_files import StoredFile, checked_sum, read_tensors, write_tensors

GUARD_FILE = re.compile(r"guard-[0-9a-f]{8}\.safetensors")
GUARD_FORMAT = "scen-guard-1"
SHARES = {"fit": 0.25, "calibration": 0.5, "report": 0.25}  # of the guard prompts
SELF_WRITTEN = "the base itself"  # the source of a guard that the base sampled
QUESTION_BANK = "the question bank and the base itself"  # the source of the default guard


@dataclass(frozen=True)
class GuardTensors:
    """Tensors in the guard file.

    Attributes:
        keys: (n, h), of the guard prompts and of their segments.
        rows: (n,), the prompt of each key.
        mean: (h,), of the whitening, which is fitted on the `fit` split.
        axes: (r, h), of the whitening.
        scales: (r,), of the whitening.
    """

    keys: np.ndarray
    rows: np.ndarray
    mean: np.ndarray
    axes: np.ndarray
    scales: np.ndarray


@dataclass(frozen=True)
class NewGuard:
    """A guard to write: (prompt, split, source) of each prompt, in the order of the tensors' rows."""

    prompts: list[tuple[str, str, str]]
    tensors: GuardTensors


@dataclass(frozen=True)
class Guard:
    """The guard of a project."""

    prompts: list[GuardPrompt]
    tensors: GuardTensors

    def source(self, split: str) -> str:
        """Where the prompts of a split come from."""
        return next((prompt.source for prompt in self.prompts if prompt.split == split), "")

    def split(self, name: str) -> tuple[list[str], np.ndarray, np.ndarray]:
        """One split: its prompts, their keys (n, h), and for each key the position of its prompt (n,)."""
        chosen = [row for row, prompt in enumerate(self.prompts) if prompt.split == name]
        position_of = {row: position for position, row in enumerate(chosen)}
        in_split = np.isin(self.tensors.rows, chosen)
        positions = np.array([position_of[row] for row in self.tensors.rows[in_split]], np.int64)
        return [self.prompts[row].prompt for row in chosen], self.tensors.keys[in_split], positions


def put_guard(folder: Path, ledger: Ledger, guard: NewGuard) -> StoredFile:
    """Write the guard's tensors, then record the guard in the ledger, in one transaction. It replaces any other."""
    stored = write_tensors(folder, "guard", vars(guard.tensors), {"format": GUARD_FORMAT})
    sources = sorted({source for _prompt, _split, source in guard.prompts})
    payload = {**stored.as_json(), "prompts": len(guard.prompts), "sources": sources}
    payload["rows"] = digest_of_guard(guard.prompts)
    with ledger.change("guard", **payload):
        ledger.db["guard"].delete_where()
        ledger.db["guard"].insert_all(
            {"prompt": prompt, "split": split, "source": source} for prompt, split, source in guard.prompts
        )
        ledger.db["settings"].insert({"name": "guard", "value": json.dumps(payload)}, replace=True)
    return stored


def guard_setting(ledger: Ledger) -> dict[str, Any] | None:
    """The setting that names the guard's file, if there is a guard. Raises `DamageFound` for a malformed one."""
    return ledger.file_setting("guard", GUARD_FILE, GUARD_FIELDS)


def read_guard(folder: Path, ledger: Ledger) -> Guard | None:
    """The guard, if the project has one. Raises `DamageFound` if it is not what was committed."""
    if (setting := guard_setting(ledger)) is None:
        return None
    name = str(setting["file"])
    if checked_sum(folder, name) != setting["sha256"]:
        raise DamageFound(f"`{name}` is not the guard that was committed", hint=VERIFY_HINT)
    tensors = GuardTensors(*read_tensors(folder, name, tuple(GuardTensors.__dataclass_fields__)))
    prompts = ledger.guard()
    if digest_of_guard([(row.prompt, row.split, row.source) for row in prompts]) != setting["rows"]:
        raise DamageFound("the guard's rows in `scen.db` are not those that were committed", hint=VERIFY_HINT)
    return Guard(prompts, tensors)
