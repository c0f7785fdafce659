"""What training hands to the ledger: an edit, how it was trained, and the row that says so."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from scen_cli.data.records import EditRecord, SourceLine
from scen_cli.project.ledger import now
from scen_cli.project.tensor_files import StoredFile


@dataclass(frozen=True)
class TrainingStats:
    """How an expert and its neuron were trained, for the ledger."""

    seed: int
    seconds: float
    expert_losses: list[float] = field(default_factory=list)
    neuron_losses: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class TrainedEdit:
    """One edit that an expert was trained for: `activation` is the neuron's on its key, `train_rephrases` the rephrases
    it was trained with, `superseding` the edits it takes the place of, beside those of its prompt, `subject_forms`
    how its subject is written in tokens. One that is not `active` failed, and `reason` says why; of one that is, the
    reason says what to know of it.
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
    expert: int | None,
    edit: TrainedEdit,
    training: TrainingStats,
    stored: StoredFile | None,
    sharing: int,
    rank: int,
) -> dict[str, Any]:
    """The row of one edit in the ledger; `sharing`: how many were trained together; `rank`: 0 of a full expert."""
    record, where = edit.record, edit.where
    return {
        "id": edit_id,
        "prompt": record.prompt,
        "target": record.target,
        "subject": record.subject,
        "rephrases": json.dumps(record.rephrases),
        "state": "active" if stored else "failed",
        "superseded_by": None,
        "reason": edit.reason or None,
        "file": stored.name if stored else None,
        "sha256": stored.sha256 if stored else None,
        "size": stored.size if stored else None,
        "expert_losses": json.dumps(training.expert_losses),
        "neuron_losses": json.dumps(training.neuron_losses),
        "activation": edit.activation,
        "seed": training.seed,
        "seconds": training.seconds / sharing,
        "created": now(),
        "source": where.source,
        "source_line": where.line,
        "expert": expert if stored else None,
        "train_rephrases": json.dumps(edit.train_rephrases),
        "rank": rank if stored else None,
        "index_sha256": stored.index_sha256 if stored else None,
        "subject_forms": json.dumps(edit.subject_forms),
    }
