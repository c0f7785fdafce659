"""What becomes of each record of an edit run: edited, skipped or failed, and why."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from scen_cli.data.entries import Entry
from scen_cli.data.records import EditRecord, SourceLine
from scen_cli.editing.conflicts import Conflict, find_conflicts
from scen_cli.editing.editor import Editor
from scen_cli.editing.project_editor import ProjectEditor
from scen_cli.errors import UsageError
from scen_cli.experts.fit_records import FitAll
from scen_cli.project.ledger_rows import Edit


@dataclass(frozen=True)
class Outcome:
    """One record's fate. `reason` says why it was skipped or failed; `edit` is its edit, if it has one."""

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
        notes = [f"supersedes edit {', '.join(map(str, self.supersedes))}" if self.supersedes else "", self.warning]
        return "; ".join(
            [f"edit {self.edit}: {self.prompt} -> {self.target} ({self.seconds:.2f} s)", *filter(None, notes)]
        )


def precheck(editor: ProjectEditor, entry: Entry) -> Outcome | None:
    """What is known of a record without training: that it is bad, can never be trained, or stands in
    the ledger already. None: it is to be trained.

    An active edit is not made twice. One that this very file led to before, and that was
    reverted or superseded since, does not come back by running the file again; one that failed
    would fail again.
    """
    where = str(entry.where)
    if entry.record is None:
        return Outcome(where, "failed", reason=entry.problem)
    for edit in editor.project.ledger.find_exact(entry.record.prompt, entry.record.target):
        if edit.state == "active":
            return Outcome(where, "skipped", edit.id, f"already edit {edit.id}")
        if edit.source != entry.where.source or edit.source in ("command line", "-"):
            continue
        if edit.state == "failed":
            reason = f"target not learned when it was tried as edit {edit.id}: {edit.reason}"
            return Outcome(where, "failed", edit.id, reason)
        reason = f"edit {edit.id} of this file is {edit.state}; `--prompt` and `--target` make it anew"
        return Outcome(where, "skipped", edit.id, reason)
    try:
        editor.prepare(entry.record)
        editor.project.check_may_supersede(entry.record.prompt)
    except UsageError as error:
        return Outcome(where, "failed", reason=str(error))
    return None


@dataclass
class Plan:
    """What is to be done with each record: `outcomes` knows already, or None, and then `conflicts` with edits that it
    is to supersede or to be kept beside, as the policy says, for a `reason`."""

    entries: Sequence[Entry]
    outcomes: list[Outcome | None]
    conflicts: dict[int, list[Conflict]] = field(default_factory=dict)
    supersede: bool = False
    reason: str = ""

    def wanted(self) -> list[tuple[int, EditRecord, SourceLine]]:
        """(place, record, line) of what is to be trained."""
        return [
            (place, entry.record, entry.where)
            for place, entry in enumerate(self.entries)
            if self.outcomes[place] is None and entry.record is not None
        ]


def plan(editor: Editor, entries: Sequence[Entry], policy: str = "refuse", reason: str = "") -> Plan:
    """Foresee each record's fate, without training. Records that contradict an edit or an earlier record fail,
    unless the policy is to `supersede` those or to `keep` both."""
    made = Plan(entries, [precheck(editor, entry) for entry in entries], {}, policy == "supersede", reason)
    records = {place: record for place, record, _where in made.wanted()}
    made.conflicts = find_conflicts(editor, records)
    if policy == "refuse":
        for place, conflict in made.conflicts.items():
            made.outcomes[place] = Outcome(str(entries[place].where), "failed", reason=str(conflict[0]))
    return made


def train(editor: Editor, plan: Plan, batch: int = 1, fit_all: FitAll | None = None) -> Iterator[dict[int, Outcome]]:
    """Train and commit what is planned, in order: so many experts are trained at once, and committed one by one, each
    with the record, or the records that share it. Yields what became of each, by its place, and puts it into the plan.

    `fit_all` trains the batches, elsewhere; without it they are trained here as their turn comes.
    """
    wanted = plan.wanted()
    if wanted:
        editor.index.load()  # before the first is trained: a damaged project takes no more edits
    size = editor.recipe.edits_per_expert
    groups = [wanted[start : start + size] for start in range(0, len(wanted), size)]
    records = [[record for _place, record, _where in group] for group in groups]
    batches = [records[start : start + batch] for start in range(0, len(records), batch)]
    fits = fit_all(batches) if fit_all else (editor.fit(one) for one in batches)
    for number, group in enumerate(groups):
        if number % batch == 0:
            fitted = next(fits)
        conflicts = [plan.conflicts.get(place, []) for place, _record, _where in group]
        superseding = [_in_force(editor, plan, some) if plan.supersede else () for some in conflicts]
        kept = [conflict for some in conflicts for conflict in some if not plan.supersede]
        note = f"kept beside {kept[0]}: {plan.reason}" if kept else ""
        try:
            pairs = [(record, where) for _place, record, where in group]
            edits = editor.edit_together(pairs, superseding, note, fitted[number % batch])
            done = zip(group, edits, strict=True)
            made = {place: outcome_of(editor, edit, where) for (place, _record, where), edit in done}
        except UsageError as error:  # it cannot stand beside another edit: nothing was committed
            made = {place: Outcome(str(where), "failed", reason=str(error)) for place, _record, where in group}
        for place, outcome in made.items():
            plan.outcomes[place] = outcome
        yield made


def _in_force(editor: Editor, plan: Plan, conflicts: Sequence[Conflict]) -> tuple[int, ...]:
    """The edits that a record contradicts, as far as they are active by now."""
    active = editor.project.ledger.active_experts()
    edits = []
    for conflict in conflicts:
        outcome = plan.outcomes[conflict.rival.place] if conflict.rival.place is not None else None
        edits.append(outcome.edit if outcome is not None else conflict.rival.edit)
    return tuple(dict.fromkeys(edit for edit in edits if edit in active))


def outcome_of(editor: ProjectEditor, edit: Edit, where: SourceLine) -> Outcome:
    """What became of a record that was trained."""
    if edit.state == "failed":
        return Outcome(str(where), "failed", edit.id, f"target not learned: {edit.reason}")
    theta, warning = editor.project.ledger.theta(), edit.reason or ""
    if edit.reason and not edit.reason.startswith("kept beside"):
        warning = f"target not learned, but active: {edit.reason}"
    if edit.activation is not None and edit.activation <= theta:
        warning = f"it does not fire on its own prompt: activation {edit.activation:.3f}, theta {theta}"
    return Outcome(
        str(where),
        "edited",
        edit.id,
        prompt=edit.prompt,
        target=edit.target,
        seconds=round(edit.seconds, 3),
        supersedes=tuple(editor.project.ledger.edits_superseded_by(edit.id)),
        warning=warning,
    )
