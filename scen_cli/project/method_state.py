"""What a method other than SCEN has learned: one file for all edits. Each batch of edits replaces it.

method-<sha8>.safetensors    what the method keeps: hook layers, LoRA blocks, a vector database
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
from safetensors.numpy import load

from scen_cli.errors import DamageFound
from scen_cli.project.event_log import STATE_FIELDS
from scen_cli.project.ledger import Ledger
from scen_cli.project.tensor_files import RESTORE_HINT, StoredFile, regular, write_tensors

STATE_FILE = re.compile(r"method-[0-9a-f]{8}\.safetensors")
STATE_FORMAT = "scen-method-1"
Arrays = Mapping[str, np.ndarray]


def write_state(folder: Path, method: str, tensors: Mapping[str, np.ndarray]) -> StoredFile:
    """Write the file durably. It counts once `put_state` has recorded it."""
    return write_tensors(folder, "method", tensors, {"format": STATE_FORMAT, "method": method})


def put_state(ledger: Ledger, stored: StoredFile, edits: list[int]) -> None:
    """Record the file in the ledger in place of the previous one, in one transaction or as part of the caller's.

    Args:
        ledger: The ledger.
        stored: The file.
        edits: The edits that the method has learned since the previous file.
    """
    with ledger.change("state", edits=edits, **stored.as_json()):
        ledger.db["settings"].insert({"name": "state", "value": json.dumps(stored.as_json())}, replace=True)


def state_setting(ledger: Ledger) -> dict[str, Any] | None:
    """The setting that names the state's file, if there is a state. Raises `DamageFound` for a malformed one."""
    return ledger.file_setting("state", STATE_FILE, STATE_FIELDS)


def read_state(folder: Path, ledger: Ledger) -> dict[str, np.ndarray] | None:
    """What the method has learned. Raises `DamageFound` if the file is not what was committed."""
    while setting := state_setting(ledger):
        try:
            return _read(folder, setting["file"], setting["sha256"])
        except DamageFound:
            if state_setting(ledger) == setting:  # else a writer has replaced the file since: read the new one
                raise
    return None


def _read(folder: Path, name: str, sha256: str) -> dict[str, np.ndarray]:
    try:
        content = regular(folder, name).read_bytes()
        if hashlib.sha256(content).hexdigest() != sha256:
            raise DamageFound(f"`{name}` is not what was committed", hint=RESTORE_HINT)
        return dict(load(content))
    except (OSError, SafetensorError, TypeError, ValueError) as error:
        raise DamageFound(f"`{name}` cannot be read: {error}", hint=RESTORE_HINT) from error
