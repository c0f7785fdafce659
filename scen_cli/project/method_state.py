"""What a method other than SCEN has learned: one file for all edits. Each batch of edits replaces it.

method-<sha8>.safetensors    what the method keeps: hook layers, LoRA blocks, a vector database
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load

from scen_cli.errors import DamageFound, UsageError
from scen_cli.project import commit_edits
from scen_cli.project.commit_edits import RevertEffects, TrainedEdit, TrainingStats
from scen_cli.project.event_log import STATE_FIELDS
from scen_cli.project.ledger import Ledger
from scen_cli.project.ledger_rows import Edit
from scen_cli.project.tensor_files import RESTORE_HINT, StoredFile, regular, remove_older, write_tensors

if TYPE_CHECKING:
    from scen_cli.project.project import Project

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


def commit_batch(
    project: Project, edits: Sequence[TrainedEdit], training: TrainingStats, state: Arrays | None
) -> list[Edit]:
    """Write the state of the method, then the rows of the edits: all or nothing.

    Args:
        project: The project, inside `project.writing()`.
        edits: The edits of the batch. An active edit of the same prompt becomes superseded.
        training: How they were trained.
        state: What the method has learned, these edits included; None if it could not learn them: they fail.
    """
    project.check_writing()
    stored = write_state(project.folder, str(project.method), state) if state is not None else None
    with project.ledger.db.atomic():
        # A generator: an edit supersedes an earlier one of the same batch.
        supersedes = (commit_edits.superseded_edits(project, edit) if stored else [] for edit in edits)
        inserted = commit_edits.insert_edits(project, edits, training, supersedes, {} if stored else None)
        if stored:
            put_state(project.ledger, stored, [edit.id for edit in inserted])
    _remove_older(project)
    return inserted


def batches_without(project: Project, edit_ids: Sequence[int]) -> list[list[Edit]]:
    """All edits that were learned and not reverted, except some, in the batches they were made in.

    Args:
        project: The project.
        edit_ids: The edits to leave out.

    Raises:
        UsageError: One of `edit_ids` is not active, and would not be active after a revert of the others.
    """
    excluded = set(edit_ids)
    for edit_id in edit_ids:
        edit = project.find(edit_id)
        if edit.state != "active" and edit.superseded_by not in excluded:
            raise UsageError(f"edit {edit_id} is not active: it is {edit.state}")
    events = [event for event in project.ledger.events() if event["kind"] == "edit"]
    batch_of = {event["edit"]: event["detail"].get("together", [event["edit"]])[0] for event in events}
    batches: dict[int, list[Edit]] = {}
    for edit in project.ledger.edits("active", "superseded"):
        if edit.id not in excluded:
            batches.setdefault(batch_of[edit.id], []).append(edit)
    return list(batches.values())


def revert_batch(project: Project, edit_ids: Sequence[int], state: Arrays) -> list[Edit]:
    """Revert edits, with the `state` of a method that never learned them: all or nothing.

    Call inside `project.writing()`.
    """
    project.check_writing()
    stored = write_state(project.folder, str(project.method), state)
    with project.ledger.db.atomic():
        reverted = commit_edits.commit_revert(project, tuple(edit_ids), RevertEffects)
        put_state(project.ledger, stored, [])
    _remove_older(project)
    return reverted


def _remove_older(project: Project) -> None:
    if setting := state_setting(project.ledger):
        remove_older(project.folder, STATE_FILE, setting["file"])
