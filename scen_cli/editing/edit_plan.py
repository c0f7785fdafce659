"""What will become of each record of an edit run, and what became of it: edited, skipped or failed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from scen_cli.data.entries import Entry
from scen_cli.data.records import EditRecord, SourceLine
from scen_cli.editing.conflicts import Conflict
from scen_cli.errors import UsageError
from scen_cli.model.generation import Progress, no_progress
from scen_cli.model.loaded_base import LoadedBase
from scen_cli.project.ledger import Ledger
from scen_cli.project.ledger_rows import Edit
from scen_cli.project.project import Project


@dataclass(frozen=True)
class Outcome:
    """What became of one record.

    Attributes:
        where: The file and line of the record.
        outcome: What happened.
        edit: The id of its edit, if it has one.
        reason: Why it was skipped or failed.
        supersedes: The edits that it superseded.
        warning: What to know about an edit that was made.
    """

    where: str
    outcome: Literal["edited", "skipped", "failed"]
    edit: int | None = None
    reason: str = ""
    prompt: str = ""
    target: str = ""
    seconds: float | None = None
    supersedes: tuple[int, ...] = ()
    warning: str = ""

    @property
    def needs_attention(self) -> bool:
        return bool(self.outcome == "failed" or self.supersedes or self.warning)

    def __str__(self) -> str:
        if self.outcome != "edited":
            return f"{self.where}: {'not edited' if self.outcome == 'failed' else 'skipped'}: {self.reason}"
        supersedes = f"supersedes edit {', '.join(map(str, self.supersedes))}" if self.supersedes else ""
        made = f"edit {self.edit}: {self.prompt} -> {self.target} ({self.seconds:.2f} s)"
        return "; ".join(filter(None, [made, supersedes, self.warning]))


@dataclass
class EditPlan:
    """What to do with each record.

    Attributes:
        entries: The records, in order.
        outcomes: By position: what is known already; None for a record that is to be trained.
        conflicts: By position: the edits and earlier records that a record contradicts.
        doubts: By position: those that it may contradict.
        supersede: Whether contradicted edits are superseded; otherwise both stay active.
        reason: Why both stay active.
    """

    entries: Sequence[Entry]
    outcomes: list[Outcome | None]
    conflicts: dict[int, list[Conflict]] = field(default_factory=dict)
    doubts: dict[int, list[Conflict]] = field(default_factory=dict)
    supersede: bool = False
    reason: str = ""

    def to_train(self) -> list[tuple[int, EditRecord, SourceLine]]:
        """(position, record, source line) of each record that is to be trained."""
        return [
            (position, entry.record, entry.where)
            for position, entry in enumerate(self.entries)
            if self.outcomes[position] is None and entry.record is not None
        ]

    def conflicting_edits(self, position: int, ledger: Ledger) -> tuple[int, ...]:
        """The active edits that a record contradicts, those that this run has made among them."""
        active = ledger.active_experts()
        edits = []
        for conflict in self.conflicts.get(position, []):
            earlier = conflict.candidate.position
            outcome = self.outcomes[earlier] if earlier is not None else None
            edits.append(outcome.edit if outcome is not None else conflict.candidate.edit)
        return tuple(dict.fromkeys(edit for edit in edits if edit in active))


def precheck(loaded: LoadedBase, project: Project, entry: Entry) -> Outcome | None:
    """The outcome of a record that needs no training; None if the record is to be trained.

    An active edit is not made again. An edit that this very file led to before is not made again either: one that was
    reverted or superseded since stays so, and one that failed would fail again.
    """
    where = str(entry.where)
    if entry.record is None:
        return Outcome(where, "failed", reason=entry.problem)
    for edit in project.ledger.find_exact(entry.record.prompt, entry.record.target):
        if edit.state == "active":
            return Outcome(where, "skipped", edit.id, f"already edit {edit.id}")
        if edit.source != entry.where.source or edit.source in ("command line", "-"):
            continue
        if edit.state == "failed":
            reason = f"its target was not learned when it was tried as edit {edit.id}: {edit.reason}"
            return Outcome(where, "failed", edit.id, reason)
        reason = f"edit {edit.id} of this file is {edit.state}; `--prompt` and `--target` edit it again"
        return Outcome(where, "skipped", edit.id, reason)
    try:
        loaded.check_trainable(entry.record)
        project.check_may_supersede(entry.record.prompt)
    except UsageError as error:
        return Outcome(where, "failed", reason=str(error))
    return None


def precheck_all(
    loaded: LoadedBase, project: Project, entries: Sequence[Entry], progress: Progress = no_progress
) -> list[Outcome | None]:
    """`precheck` each record, in order."""
    outcomes = []
    for done, entry in enumerate(entries, start=1):
        outcomes.append(precheck(loaded, project, entry))
        progress(done, len(entries))
    return outcomes


def outcome_of(project: Project, edit: Edit, where: SourceLine, doubts: Sequence[Conflict] = ()) -> Outcome:
    """The outcome of a record that was trained, from its edit in the ledger; `doubts`: what it may contradict."""
    if edit.state == "failed":
        return Outcome(str(where), "failed", edit.id, f"target not learned: {edit.reason}")
    theta, warning = project.ledger.theta(), edit.reason or ""
    if edit.reason and not edit.reason.startswith("kept beside"):
        warning = f"target not learned, but active: {edit.reason}"
    if edit.activation is not None and edit.activation <= theta:
        warning = f"its own prompt does not activate it: activation {edit.activation:.3f}, theta {theta}"
    return Outcome(
        str(where),
        "edited",
        edit.id,
        prompt=edit.prompt,
        target=edit.target,
        seconds=round(edit.seconds, 3),
        supersedes=tuple(project.ledger.edits_superseded_by(edit.id)),
        warning="; ".join(filter(None, [warning, *map(str, doubts[:1])])),
    )
