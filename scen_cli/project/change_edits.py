"""Changes to edits that exist: a revert, and other experts in their place. Each is one transaction.

`editing.revert_edits` computes the effects of a revert. It is what programs and commands call.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from scen_cli.errors import UsageError
from scen_cli.project.disk import remove
from scen_cli.project.edit_files import EditTensors, LowRankArrays, write_edit
from scen_cli.project.ledger_rows import Edit, Threshold
from scen_cli.project.project import Project
from scen_cli.project.tensor_files import metadata


@dataclass(frozen=True)
class RevertEffects:
    """What a revert changes for the edits that stay active.

    Attributes:
        threshold: The new threshold; None leaves it as it is.
        biases: By expert: the new bias of its neuron, and the neuron's new activation on its own key.
        note: What could not be changed, and why.
    """

    threshold: Threshold | None = None
    biases: dict[int, tuple[float, float]] = field(default_factory=dict)
    note: str = ""


def commit_revert(project: Project, edit_ids: tuple[int, ...], effects: Callable[[], RevertEffects]) -> list[Edit]:
    """Revert edits in the ledger. Their rows and files stay. Edits that they had superseded become active again.

    Args:
        project: The project, inside `project.writing()`.
        edit_ids: The edits to revert.
        effects: Called inside the transaction, when the edits are already reverted.

    Returns:
        The reverted edits.

    Raises:
        UsageError: An edit does not exist, is not active, or shares its expert with an edit that would stay.
    """
    project.check_writing()
    ledger = project.ledger
    with ledger.db.atomic():
        for edit_id in sorted(edit_ids, reverse=True):  # an edit before the one that it superseded
            _check_revertible(project, edit_id, edit_ids)
            together = {"together": sorted(edit_ids)} if len(edit_ids) > 1 else {}
            with ledger.change("revert", edit_id, **together) as payload:
                ledger.db["edits"].update(edit_id, {"state": "reverted"})
                payload |= _reactivate(project, ledger.edits_superseded_by(edit_id))
                if edit_id == min(edit_ids):
                    payload |= _apply(project, effects())
    project.neurons_changed = project.method is None
    return [project.find(edit_id) for edit_id in edit_ids]


def _check_revertible(project: Project, edit_id: int, together: tuple[int, ...]) -> None:
    edit = project.find(edit_id)
    if edit.state != "active":
        raise UsageError(f"edit {edit_id} is not active: it is {edit.state}")
    sharing = project.ledger.sharing(edit_id)
    if not set(sharing) <= set(together):
        hint = f"`scen revert {' '.join(map(str, sharing))}` reverts them all"
        raise UsageError(f"edit {edit_id} shares its expert and neuron with other edits", hint=hint)


def _reactivate(project: Project, edit_ids: list[int]) -> dict[str, Any]:
    """Make superseded edits active again; returns what the event records.

    An edit whose prompt has another active edit by now stays superseded, by that one.
    """
    reactivated: list[int] = []
    superseded: dict[str, int] = {}
    for edit_id in edit_ids:
        newer = project.ledger.active_edits_for(project.find(edit_id).prompt)
        if newer:
            row = {"state": "superseded", "superseded_by": newer[-1]}
            superseded[str(edit_id)] = newer[-1]
        else:
            row = {"state": "active", "superseded_by": None}
            reactivated.append(edit_id)
        project.ledger.db["edits"].update(edit_id, row)
    return {"reactivated": reactivated, **({"superseded_by_newer": superseded} if superseded else {})}


def _apply(project: Project, effects: RevertEffects) -> dict[str, Any]:
    """Write the effects into the tables; returns what the event records."""
    payload: dict[str, Any] = {"note": effects.note} if effects.note else {}
    for expert, (bias, activation) in effects.biases.items():
        project.ledger.db["edits"].update(expert, {"bias": bias, "activation": activation})
        payload.setdefault("biases", {})[str(expert)] = [bias, activation]
    if effects.threshold is not None:
        payload |= project.ledger.set_threshold(effects.threshold)
    return payload


def replace_experts(project: Project, experts: dict[int, LowRankArrays]) -> tuple[int, int]:
    """Replace experts; neurons and keys stay. Call inside `project.writing()`.

    First the new files are written, then one transaction changes the rows, then the old files are removed. What a
    crash leaves is a stray file, which `scen verify --repair` removes.

    Args:
        project: The project.
        experts: By expert: the new one.

    Returns:
        The bytes of the files before and after.
    """
    project.check_writing()
    ledger, stored, old = project.ledger, {}, [project.find(expert) for expert in experts]
    for edit, expert in zip(old, experts.values(), strict=True):
        index = project.files.index(edit)
        refitted = (index["refitted"], index["refitted_of"]) if len(index["refitted_of"]) else (None, None)
        tensors = EditTensors(expert, index["neuron"], index["key"], *refitted)
        header = metadata(project.folder, project.files.name(edit))
        stored[edit.id] = write_edit(project.folder, edit.id, tensors, header)
    with ledger.db.atomic():
        for edit in ledger.edits():
            if edit.expert in stored:
                row = {**stored[edit.expert].as_json(), "rank": experts[edit.expert].rank}
                with ledger.change("compress", edit.id, **row):
                    ledger.db["edits"].update(edit.id, row)
    for edit in old:
        remove(project.folder / project.files.name(edit))
    return sum(edit.size or 0 for edit in old), sum(file.size for file in stored.values())
