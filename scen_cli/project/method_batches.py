"""Batches of edits of a method other than SCEN: each commit replaces what the method has learned."""

from __future__ import annotations

from collections.abc import Sequence

from scen_cli.errors import UsageError
from scen_cli.project.change_edits import RevertEffects, commit_revert
from scen_cli.project.ledger_rows import Edit
from scen_cli.project.method_state import STATE_FILE, Arrays, put_state, state_setting, write_state
from scen_cli.project.new_edits import TrainedEdit, TrainingStats, insert_edits, superseded_edits
from scen_cli.project.project import Project
from scen_cli.project.tensor_files import remove_older


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
        supersedes = (superseded_edits(project.ledger, edit) if stored else [] for edit in edits)
        inserted = insert_edits(project.ledger, edits, training, supersedes, {} if stored else None)
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
        reverted = commit_revert(project, tuple(edit_ids), RevertEffects)
        put_state(project.ledger, stored, [])
    _remove_older(project)
    return reverted


def _remove_older(project: Project) -> None:
    if setting := state_setting(project.ledger):
        remove_older(project.folder, STATE_FILE, setting["file"])
