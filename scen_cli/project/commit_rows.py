"""What training hands to the ledger: an edit, how it was trained, and the row and event that record it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from scen_cli.data.records import EditRecord, SourceLine
from scen_cli.project.event_log import MUTABLE, digest_of_row
from scen_cli.project.ledger import now
from scen_cli.project.ledger_rows import Threshold
from scen_cli.project.tensor_files import StoredFile

if TYPE_CHECKING:
    from scen_cli.project.project import Project


@dataclass(frozen=True)
class TrainingStats:
    """How an expert and its neuron were trained: seed, wall time in seconds, and the loss of each step."""

    seed: int
    seconds: float
    expert_losses: list[float] = field(default_factory=list)
    neuron_losses: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class TrainedEdit:
    """One edit that an expert was trained for.

    Attributes:
        record: What to change.
        where: Where the record was read.
        active: Whether the edit succeeded.
        activation: The neuron's activation on the edit's own key.
        reason: Why the edit failed, or a remark on an active edit.
        train_rephrases: The rephrases that it was trained on.
        superseding: Edits that it supersedes, besides those of the same prompt.
        subject_forms: How its subject is tokenised: lists of token ids.
    """

    record: EditRecord
    where: SourceLine
    active: bool
    activation: float | None = None
    reason: str = ""
    train_rephrases: tuple[str, ...] = ()
    superseding: tuple[int, ...] = ()
    subject_forms: Sequence[Sequence[int]] = ()


def edit_row(
    edit_id: int,
    edit: TrainedEdit,
    training: TrainingStats,
    batch_size: int,
    state: str,
    stored: StoredFile | None = None,
    expert: int | None = None,
    rank: int | None = None,
    bias: float | None = None,
) -> dict[str, Any]:
    """The row of one edit.

    Args:
        edit_id: Its id.
        edit: The edit.
        training: How it was trained.
        batch_size: How many edits were trained together; each gets the same share of the seconds.
        state: `active` or `failed`.
        stored: Its file, if it has one of its own or shares one.
        expert: The edit whose file holds the expert.
        rank: The rank of the expert, 0 for a full one.
        bias: The bias of the neuron.
    """
    record, where = edit.record, edit.where
    return {
        "id": edit_id,
        "prompt": record.prompt,
        "target": record.target,
        "subject": record.subject,
        "rephrases": json.dumps(record.rephrases),
        "state": state,
        "superseded_by": None,
        "reason": edit.reason or None,
        "file": stored.name if stored else None,
        "sha256": stored.sha256 if stored else None,
        "size": stored.size if stored else None,
        "expert_losses": json.dumps(training.expert_losses),
        "neuron_losses": json.dumps(training.neuron_losses),
        "activation": edit.activation,
        "seed": training.seed,
        "seconds": training.seconds / batch_size,
        "created": now(),
        "source": where.source,
        "source_line": where.line,
        "expert": expert if stored else None,
        "bias": bias if stored else None,
        "train_rephrases": json.dumps(edit.train_rephrases),
        "rank": rank if stored else None,
        "index_sha256": stored.index_sha256 if stored else None,
        "subject_forms": json.dumps(edit.subject_forms),
    }


def insert_edit(
    project: Project,
    row: dict[str, Any],
    supersedes: Sequence[int],
    batch: Sequence[int],
    threshold: Threshold | None = None,
) -> None:
    """Insert the row of an edit and append its event, in one transaction or as part of the caller's.

    Args:
        project: The project, inside `project.writing()`.
        row: The row, from `edit_row`.
        supersedes: Active edits that become superseded by it.
        batch: The ids of the edits that were trained together.
        threshold: The threshold that the edit raised, if it did.
    """
    ledger, edit_id = project.ledger, row["id"]
    with ledger.change("edit-failed" if row["state"] == "failed" else "edit", edit_id) as payload:
        for older in supersedes:
            ledger.db["edits"].update(older, {"state": "superseded", "superseded_by": edit_id})
        ledger.db["edits"].insert(row)
        stored_row = dict(next(ledger.db["edits"].rows_where("id = ?", [edit_id])))
        payload |= {name: stored_row[name] for name in (*MUTABLE, "prompt", "target", "seed")}
        payload |= {"row": digest_of_row(stored_row), "supersedes": list(supersedes)}
        payload |= {"base": project.settings.get("weights_digest"), "recipe": project.settings["recipe"].get("name")}
        if len(batch) > 1:
            payload["together"] = list(batch)
        if threshold is not None:
            payload |= ledger.set_threshold(threshold)


def superseded_edits(project: Project, edit: TrainedEdit) -> list[int]:
    """The active edits that an edit supersedes: those of its prompt, and those it names."""
    named = {older for older in edit.superseding if project.find(older).state == "active"}
    return sorted({*project.ledger.active_edits_for(edit.record.prompt), *named})
