"""Batches of edits by a method other than SCEN: one transaction each, with the file of all that was learned so far."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from scen_cli.errors import UsageError
from scen_cli.project.commit_revert import RevertEffects, commit_revert
from scen_cli.project.commit_rows import TrainedEdit, TrainingStats, edit_row, insert_edit, superseded_edits
from scen_cli.project.ledger_rows import Edit
from scen_cli.project.method_state import put_state, remove_older, write_state
from scen_cli.project.project import Project

Arrays = Mapping[str, np.ndarray]


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
    first = project.ledger.next_edit_id()
    ids = list(range(first, first + len(edits)))
    stored = write_state(project.folder, str(project.method), state) if state is not None else None
    with project.ledger.db.atomic():
        for edit_id, edit in zip(ids, edits, strict=True):
            row = edit_row(edit_id, edit, training, len(edits), "active" if stored else "failed")
            insert_edit(project, row, superseded_edits(project, edit) if stored else [], ids)
        if stored:
            put_state(project.ledger, stored, ids)
    remove_older(project.folder, project.ledger)
    return [project.find(edit_id) for edit_id in ids]


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
    batch_of: dict[int, int] = {}
    for event in project.ledger.events():
        if event["kind"] == "edit":
            batch_of[event["edit"]] = event["detail"].get("together", [event["edit"]])[0]
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
        reverted = commit_revert(project, tuple(edit_ids), RevertEffects)
        put_state(project.ledger, stored, [])
    remove_older(project.folder, project.ledger)
    return reverted
