"""The guard on disk: prompts that must stay the base's own (rows of the ledger), their keys and whitening (a file)."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from scen_cli.errors import VERIFY_HINT, DamageFound
from scen_cli.project.event_log import digest_of_guard
from scen_cli.project.ledger import Ledger
from scen_cli.project.ledger_rows import GuardPrompt
from scen_cli.project.tensor_files import StoredFile, checked_sum, read_tensors, write_guard

GUARD_FILE = re.compile(r"guard-[0-9a-f]{8}\.safetensors")
SHARES = {"fit": 0.25, "calibration": 0.5, "report": 0.25}  # of the guard prompts
SELF_WRITTEN = "the base itself"  # the source of a guard that nobody gave


@dataclass(frozen=True)
class GuardTensors:
    """`keys` (n, h) of guard prompts and of their splits, and `rows` (n,), the prompt each belongs to; and the
    whitening that those of the fit split give: `mean` (h,), `axes` (r, h), `scales` (r,)."""

    keys: np.ndarray
    rows: np.ndarray
    mean: np.ndarray
    axes: np.ndarray
    scales: np.ndarray


@dataclass(frozen=True)
class NewGuard:
    """A guard to be kept: (prompt, split, source) of each prompt, in the order of the tensors' rows."""

    prompts: list[tuple[str, str, str]]
    tensors: GuardTensors


@dataclass(frozen=True)
class Guard:
    """The guard of a project."""

    prompts: list[GuardPrompt]
    tensors: GuardTensors

    def source(self, split: str) -> str:
        """Where the prompts of a split are from."""
        return next((prompt.source for prompt in self.prompts if prompt.split == split), "")

    def split(self, name: str) -> tuple[list[str], np.ndarray, np.ndarray]:
        """The prompts of one split, keys (n, h), and which of these prompts each key belongs to (n,)."""
        chosen = [place for place, prompt in enumerate(self.prompts) if prompt.split == name]
        place_of = {row: place for place, row in enumerate(chosen)}
        mine = np.isin(self.tensors.rows, chosen)
        owners = np.array([place_of[row] for row in self.tensors.rows[mine]], np.int64)
        return [self.prompts[row].prompt for row in chosen], self.tensors.keys[mine], owners


def write_guard_file(folder: Path, guard: NewGuard) -> StoredFile:
    """Write the guard's tensors; it counts once `add_guard` has put it into the ledger."""
    return write_guard(folder, vars(guard.tensors))


def add_guard(ledger: Ledger, guard: NewGuard, stored: StoredFile) -> None:
    """Put the guard into the ledger, in one transaction; it takes the place of any other."""
    sources = sorted({source for _prompt, _split, source in guard.prompts})
    told: dict[str, Any] = {"sha256": stored.sha256, "prompts": len(guard.prompts), "sources": sources}
    told |= {"rows": digest_of_guard(guard.prompts), "file": stored.name, "size": stored.size}
    with ledger.change("guard", **told):
        ledger.db["guard"].delete_where()
        ledger.db["guard"].insert_all(
            {"prompt": prompt, "split": split, "source": source} for prompt, split, source in guard.prompts
        )
        ledger.db["settings"].insert({"name": "guard", "value": json.dumps(told)}, replace=True)


def guard_setting(ledger: Ledger) -> dict[str, Any] | None:
    """What the settings say of the guard, if there is one. Raises `DamageFound` if that names no file of a guard."""
    kept = ledger.settings().get("guard")
    if kept is not None and (
        not isinstance(kept, dict)
        or not {"sha256", "rows", "size"} <= set(kept)
        or not GUARD_FILE.fullmatch(str(kept.get("file")))
    ):
        raise DamageFound("setting `guard` in `scen.db` names no file of a guard", hint=VERIFY_HINT)
    return kept


def read_guard(folder: Path, ledger: Ledger) -> Guard | None:
    """The guard, if the project has one. Raises `DamageFound` if its file is not what was committed."""
    kept = guard_setting(ledger)
    if kept is None:
        return None
    name = str(kept["file"])
    if checked_sum(folder, name) != kept["sha256"]:
        raise DamageFound(f"`{name}` is not the guard that was committed", hint=VERIFY_HINT)
    tensors = GuardTensors(*read_tensors(folder, name, tuple(GuardTensors.__dataclass_fields__)))
    prompts = ledger.guard()
    if digest_of_guard([(one.prompt, one.split, one.source) for one in prompts]) != kept["rows"]:
        raise DamageFound("the guard's rows in `scen.db` are not those that were committed", hint=VERIFY_HINT)
    return Guard(prompts, tensors)
