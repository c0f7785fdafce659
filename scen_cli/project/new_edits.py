"""The rows and events of newly trained edits."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from scen_cli.data.records import EditRecord, SourceLine
from scen_cli.project.event_log import MUTABLE, digest_of_row
from scen_cli.project.ledger import Ledger, now
from scen_cli.project.ledger_queries import read_settings
from scen_cli.project.ledger_rows import Edit, Threshold


@dataclass(frozen=True)
class TrainingStats:
    """How an expert and its neuron were trained: seed, wall time in seconds, the loss of each step, and the expert's
    index in the batch that it was trained in, with the batch's size."""

    seed: int
    seconds: float
    expert_losses: list[float] = field(default_factory=list)
    neuron_losses: list[float] = field(default_factory=list)
    batch: tuple[int, int] = (0, 1)


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
        subject_names: The names by which prompts are routed to it.
    """

    record: EditRecord
    where: SourceLine
    active: bool
    activation: float | None = None
    reason: str = ""
    train_rephrases: tuple[str, ...] = ()
    superseding: tuple[int, ...] = ()
    subject_names: Sequence[str] = ()


def insert_edits(
    ledger: Ledger,
    edits: Sequence[TrainedEdit],
    training: TrainingStats,
    supersedes: Iterable[list[int]],
    columns: dict[str, Any] | None,
    threshold: Threshold | None = None,
) -> list[Edit]:
    """Insert the rows of edits that were trained together, with their events: all or nothing.

    Args:
        ledger: The ledger, inside `project.writing()`.
        edits: The edits.
        training: How they were trained; each gets the same share of the seconds.
        supersedes: For each edit: the active edits that become superseded by it.
        columns: The columns about their file and expert; None: training failed.
        threshold: The threshold that the first active edit raised, if it did.
    """
    settings, first = read_settings(ledger), ledger.next_edit_id()
    ids = list(range(first, first + len(edits)))
    with ledger.db.atomic():
        for edit_id, edit, older_edits in zip(ids, edits, supersedes, strict=True):
            active = edit.active and columns is not None
            with ledger.change("edit" if active else "edit-failed", edit_id) as payload:
                for older in older_edits:
                    ledger.db["edits"].update(older, {"state": "superseded", "superseded_by": edit_id})
                row = _row(edit_id, edit, training, len(edits)) | {"state": "active" if active else "failed"}
                ledger.db["edits"].insert({**row, **((active and columns) or {})})
                row = dict(next(ledger.db["edits"].rows_where("id = ?", [edit_id])))
                payload |= {name: row[name] for name in (*MUTABLE, "prompt", "target", "seed")}
                payload |= {"row": digest_of_row(row), "supersedes": older_edits}
                payload["base"] = settings.get("weights_digest")
                payload["recipe"] = settings["recipe"].get("name")
                if len(ids) > 1:
                    payload["together"] = ids
                if training.batch != (0, 1):
                    payload["batch"] = training.batch
                if threshold is not None and active:
                    payload |= ledger.set_threshold(threshold)
                    threshold = None
    return [ledger.find(edit_id) for edit_id in ids]


def _row(edit_id: int, edit: TrainedEdit, training: TrainingStats, batch_size: int) -> dict[str, Any]:
    """The columns of an edit that do not depend on its file."""
    return {
        "id": edit_id,
        **{name: getattr(edit.record, name) for name in ("prompt", "target", "subject")},
        "rephrases": json.dumps(edit.record.rephrases),
        **{name: json.dumps(getattr(edit, name)) for name in ("train_rephrases", "subject_names")},
        **{name: json.dumps(getattr(training, name)) for name in ("expert_losses", "neuron_losses")},
        "reason": edit.reason or None,
        "activation": edit.activation,
        "seed": training.seed,
        "seconds": training.seconds / batch_size,
        "created": now(),
        "source": edit.where.source,
        "source_line": edit.where.line,
    }


def superseded_edits(ledger: Ledger, edit: TrainedEdit) -> list[int]:
    """The active edits that an edit supersedes: those of its prompt, and those it names."""
    named = {older for older in edit.superseding if ledger.find(older).state == "active"}
    return sorted({*ledger.active_edits_for(edit.record.prompt), *named})
