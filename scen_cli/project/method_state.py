"""What a method other than SCEN has learned: one file for all edits, which each batch of them replaces.

method-<sha8>.safetensors    whatever the method keeps: hook layers, LoRA blocks, a vector database
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from scen_cli.errors import VERIFY_HINT, DamageFound
from scen_cli.project import disk
from scen_cli.project.ledger import Ledger
from scen_cli.project.tensor_files import RESTORE_IT, StoredFile, regular

STATE_FILE = re.compile(r"method-[0-9a-f]{8}\.safetensors")
STATE_FORMAT = "scen-method-1"


def write_state(folder: Path, method: str, tensors: Mapping[str, np.ndarray]) -> StoredFile:
    """Write the file durably; it counts once `put_state` has put it into the ledger."""
    arrays = {name: array.copy(order="C") for name, array in tensors.items()}  # (`ascontiguousarray` knows no scalars)
    content = save(arrays, metadata={"scen": json.dumps({"format": STATE_FORMAT, "method": method})})
    sha256 = hashlib.sha256(content).hexdigest()
    stored = StoredFile(f"method-{sha256[:8]}.safetensors", sha256, len(content))
    disk.write_durably(folder / stored.name, content)
    return stored


def put_state(ledger: Ledger, stored: StoredFile, edits: list[int]) -> None:
    """Put the file into the ledger in place of the one before; `edits` are those it has learned since. One transaction,
    or part of the caller's."""
    told: dict[str, Any] = {"file": stored.name, "sha256": stored.sha256, "size": stored.size}
    with ledger.change("state", edits=edits, **told):
        ledger.db["settings"].insert({"name": "state", "value": json.dumps(told)}, replace=True)


def remove_older(folder: Path, ledger: Ledger) -> None:
    """Remove the files of earlier states."""
    kept = state_setting(ledger)
    for old in folder.glob("method-*"):
        if STATE_FILE.fullmatch(old.name) and kept is not None and old.name != kept["file"]:
            disk.remove(old)


def state_setting(ledger: Ledger) -> dict[str, Any] | None:
    """What the settings say of the state, if there is one. Raises `DamageFound` if that names no file of a state."""
    kept = ledger.settings().get("state")
    if kept is None:
        return None
    if not isinstance(kept, dict) or set(kept) != {"file", "sha256", "size"} or not _is_name(kept["file"]):
        raise DamageFound("setting `state` in `scen.db` names no file of a state", hint=VERIFY_HINT)
    return kept


def _is_name(name: object) -> bool:
    return isinstance(name, str) and STATE_FILE.fullmatch(name) is not None


def read_state(folder: Path, ledger: Ledger) -> dict[str, np.ndarray] | None:
    """What the method has learned. Raises `DamageFound` if the file is not what was committed."""
    while True:
        kept = state_setting(ledger)
        if kept is None:
            return None
        try:
            return _read(folder, str(kept["file"]), str(kept["sha256"]))
        except DamageFound:
            if state_setting(ledger) == kept:  # else a writer has put another in its place meanwhile
                raise


def _read(folder: Path, name: str, sha256: str) -> dict[str, np.ndarray]:
    try:
        content = regular(folder, name).read_bytes()
        if hashlib.sha256(content).hexdigest() != sha256:
            raise DamageFound(f"`{name}` is not what was committed", hint=RESTORE_IT)
        arrays: dict[str, np.ndarray] = load(content)
    except (OSError, SafetensorError, TypeError, ValueError) as error:
        raise DamageFound(f"`{name}` cannot be read: {error}", hint=RESTORE_IT) from error
    return arrays
