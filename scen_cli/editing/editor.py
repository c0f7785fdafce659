"""`Editor`: a patched model that trains edits, one at a time or several, and commits them to the project."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from scen_cli.data.entries import Entry
from scen_cli.data.records import EditRecord, SourceLine
from scen_cli.editing.conflicts import find_conflicts
from scen_cli.editing.edit_plan import EditPlan, Outcome, outcome_of, precheck_all
from scen_cli.editing.mixed_subjects import check_mixed_subjects
from scen_cli.editing.patched_model import PatchedModel
from scen_cli.editing.revert_edits import revert_edits
from scen_cli.errors import UsageError
from scen_cli.experts.fit import ExpertFit
from scen_cli.experts.fit_records import FitAll, FittedExpert, Group, fit
from scen_cli.model.base import Base
from scen_cli.model.expert_stack import Expert
from scen_cli.model.generation import Progress, no_progress
from scen_cli.model.loaded_base import TokenizedEdit
from scen_cli.neurons.admission import admit
from scen_cli.neurons.guard_split import match_key
from scen_cli.neurons.index import Index, NeuronCandidate
from scen_cli.project.edit_files import EditTensors, LowRankArrays
from scen_cli.project.ledger_rows import Edit
from scen_cli.project.new_edits import TrainedEdit, TrainingStats
from scen_cli.project.project import Project
from scen_cli.recipe import Recipe

FROM_LIBRARY = SourceLine("library", 0)  # the source of an edit that a program made


class Editor(PatchedModel):
    """Trains edits on a project's base, commits them, and answers with the active edits."""

    def __init__(self, project: Project, device: str = "auto", base: Base | None = None) -> None:
        super().__init__(project, device, base)
        self.index = Index(project)

    def edit(self, record: EditRecord, where: SourceLine = FROM_LIBRARY) -> Edit:
        """Train one edit and commit it.

        Call inside `project.writing()`.

        Args:
            record: The prompt, its target and what else is known of the fact.
            where: The source that the ledger records.

        Returns:
            The edit as the ledger has it: its `state` is `active`, or `failed` with the reason.

        Raises:
            UsageError: The record can never be trained, or cannot be active beside another edit.
        """
        return self.edit_group([(record, where)])[0]

    def plan(
        self, entries: Sequence[Entry], policy: str = "refuse", reason: str = "", progress: Progress = no_progress
    ) -> EditPlan:
        """Find out, without training, what will become of each record.

        Args:
            entries: The records.
            policy: What to do with a record that contradicts an edit or an earlier record: `refuse` it, `supersede`
                what it contradicts, or `keep` both.
            reason: Why both are kept.
            progress: Called with the steps done and all steps: each record is checked, then compared.
        """
        steps = 2 * len(entries)
        outcomes = precheck_all(self, self.project, entries, lambda done, _total: progress(done, steps))
        plan = EditPlan(entries, outcomes, supersede=policy == "supersede", reason=reason)
        records = {position: record for position, record, _where in plan.to_train()}
        found = find_conflicts(self, self.index, records, lambda done, total: progress(steps - total + done, steps))
        for position, conflicts in found.items():
            for conflict in conflicts:
                (plan.conflicts if conflict.certain else plan.doubts).setdefault(position, []).append(conflict)
        if policy == "refuse":
            for position, conflicts in plan.conflicts.items():
                plan.outcomes[position] = Outcome(str(entries[position].where), "failed", reason=str(conflicts[0]))
        return plan

    def train(self, plan: EditPlan, batch: int = 1, fit_all: FitAll | None = None) -> Iterator[dict[int, Outcome]]:
        """Train and commit what is planned, in order.

        Experts are trained `batch` at a time and committed one by one, each with its record, or with the records that
        share it. `fit_all` trains the batches in other processes.

        Yields:
            The outcomes of the records of one expert, by their positions. They are also filled into the plan.
        """
        records = plan.to_train()
        if records:
            self.index.load()  # a damaged project takes no edits: found out before the first is trained
        size = self.recipe.edits_per_expert
        groups = [records[start : start + size] for start in range(0, len(records), size)]
        to_fit = [[record for _position, record, _where in group] for group in groups]
        batches = [to_fit[start : start + batch] for start in range(0, len(to_fit), batch)]
        fits = fit_all(batches) if fit_all else (fit(self, one_batch, self.recipe) for one_batch in batches)
        for number, group in enumerate(groups):
            if number % batch == 0:
                fitted = next(fits)
            outcomes = self._commit_group(plan, group, fitted[number % batch])
            for position, outcome in outcomes.items():
                plan.outcomes[position] = outcome
            yield outcomes

    def _commit_group(
        self, plan: EditPlan, group: Sequence[tuple[int, EditRecord, SourceLine]], fitted: FittedExpert
    ) -> dict[int, Outcome]:
        ledger, positions = self.project.ledger, [position for position, _record, _where in group]
        superseding = [plan.conflicting_edits(position, ledger) if plan.supersede else () for position in positions]
        kept = [conflict for position in positions for conflict in plan.conflicts.get(position, [])]
        note = f"kept beside {kept[0]}: {plan.reason}" if kept and not plan.supersede else ""
        pairs = [(record, where) for _position, record, where in group]
        try:
            edits = self.edit_group(pairs, superseding, note, fitted)
        except UsageError as error:  # it cannot be active beside another edit: nothing was committed
            return {position: Outcome(str(where), "failed", reason=str(error)) for position, _record, where in group}
        return {
            position: outcome_of(self.project, edit, where, plan.doubts.get(position, ()))
            for (position, _record, where), edit in zip(group, edits, strict=True)
        }

    def edit_group(
        self,
        records: Sequence[tuple[EditRecord, SourceLine]],
        superseding: Sequence[tuple[int, ...]] = (),
        note: str = "",
        fitted: FittedExpert | None = None,
    ) -> list[Edit]:
        """Train one expert and one neuron for records that share them (the paper's Table 4), and commit all at once.

        Call inside `project.writing()`. A record whose target the expert does not learn fails; the others become
        active.

        Args:
            records: The records with their sources; one, unless they share an expert.
            superseding: For each record, active edits that it supersedes beside those of its own prompt.
            note: A remark that the ledger keeps with the edits.
            fitted: The expert, if it is trained already.

        Raises:
            UsageError: A record can never be trained, or cannot be active beside another edit.
        """
        older = list(superseding) or [()] * len(records)
        superseded = [self._superseded_experts(record, ids) for (record, _), ids in zip(records, older, strict=True)]
        fitted = fitted or self.fit([[record for record, _where in records]])[0]
        expert, started = fitted.fit, time.perf_counter()
        seed = int(self.project.settings["seed"]) + self.project.ledger.next_edit_id()
        reasons = [
            self._why_not_learned(expert, self.tokenize_edit(record), wrong)
            for (record, _where), wrong in zip(records, expert.wrong_tokens, strict=True)
        ]
        active = [expert.finite and not (reason and self.recipe.require_learned) for reason in reasons]
        leaving = {expert for experts, ok in zip(superseded, active, strict=True) if ok for expert in experts}
        to_index = [record for (record, _where), ok in zip(records, active, strict=True) if ok]
        neuron = self._fit_neuron(to_index, seed, leaving)
        if neuron is None and to_index:
            reasons, active = ["its neuron diverged"] * len(records), [False] * len(records)
        activations = iter(neuron.on_keys.tolist() if neuron else [])
        trained = [
            TrainedEdit(
                record,
                where,
                ok,
                next(activations) if ok else None,
                reason or note,
                record.train_rephrases,
                ids,
                names,
            )
            for (record, where), ok, reason, ids, names in zip(
                records, active, reasons, older, self._names_of([record for record, _where in records]), strict=True
            )
        ]
        seconds = time.perf_counter() - started + fitted.seconds
        stats = TrainingStats(seed, seconds, expert.losses, neuron.fit.losses if neuron else [], fitted.batch)
        return self._commit(trained, stats, expert, neuron, leaving)

    def _commit(
        self,
        trained: list[TrainedEdit],
        stats: TrainingStats,
        expert: ExpertFit,
        neuron: NeuronCandidate | None,
        leaving: set[int],
    ) -> list[Edit]:
        if neuron is None:
            edits = self.project.commit(trained, stats, None)
            self.index.note_unrelated_commit()
            return edits
        edits = self.project.commit(trained, stats, _tensors(expert, neuron), neuron.bias, neuron.threshold)
        expert_id = next(edit.expert for edit in edits if edit.expert is not None)
        self.index.add_committed(expert_id, neuron, [match_key(edit) for edit in edits if edit.expert], leaving)
        return edits

    def fit(self, groups: Sequence[Group], recipe: Recipe | None = None) -> list[FittedExpert]:
        """Train an expert for each group of records, all in one batch. Nothing is committed.

        Args:
            groups: The records of each expert.
            recipe: Another recipe than the project's.

        Raises:
            UsageError: A record can never be trained.
        """
        for record in (record for group in groups for record in group):
            self.check_trainable(record)
        return fit(self, groups, recipe or self.recipe)

    def revert(self, *edit_ids: int) -> list[Edit]:
        """Revert edits as if they had never been made (`revert_edits`). Call inside `project.writing()`."""
        return revert_edits(self.project, *edit_ids)

    def _superseded_experts(self, record: EditRecord, superseding: tuple[int, ...]) -> set[int]:
        """The experts that stop being active when this record becomes an edit."""
        ledger = self.project.ledger
        for prompt in [record.prompt, *(self.project.find(edit).prompt for edit in superseding)]:
            self.project.check_may_supersede(prompt)
        edits = (self.project.find(edit) for edit in {*ledger.active_edits_for(record.prompt), *superseding})
        return {edit.expert for edit in edits if edit.state == "active" and edit.expert is not None}

    def _fit_neuron(self, records: list[EditRecord], seed: int, leaving: set[int]) -> NeuronCandidate | None:
        """The neuron of these records; None if there are no records, or if it diverged."""
        if not records:
            return None
        self.index.load()
        # Keys come from a pass over the prompt alone, as at inference. A pass over prompt and target gives the same
        # keys but for rounding, and Adam's first steps follow the signs of gradients.
        names = self._names_of(records)
        keys = self.keys([record.prompt for record in records], names[0])
        rephrase_keys = self.keys([text for record in records for text in record.train_rephrases], names[0])
        match_keys = [
            (record.prompt, record.subject if named else None) for record, named in zip(records, names, strict=True)
        ]
        candidate = admit(self.index, keys, rephrase_keys, match_keys, seed, leaving)
        if candidate is not None:
            check_mixed_subjects(self, self.index, match_keys, candidate)
        return candidate

    def _names_of(self, records: Sequence[EditRecord]) -> list[tuple[str, ...]]:
        """`names_of` each record; none if they share an expert, which has no subject of its own."""
        return [self.names_of(record) if len(records) == 1 else () for record in records]

    def _why_not_learned(self, expert: ExpertFit, edit: TokenizedEdit, wrong_tokens: list[int]) -> str:
        """Why the expert does not answer with the target; empty if it does."""
        if not expert.finite:
            return f"its expert diverged: a lower {self.recipe.rate_name} may help"
        if not wrong_tokens:
            return ""
        if wrong_tokens == [edit.target_length - 1]:
            end = self.base.tokenizer.convert_ids_to_tokens(self.template.end_id)
            return f"the base does not produce its end token {end} (id {self.template.end_id}) after the target"
        steps = len(expert.losses)
        return f"{len(wrong_tokens)} of {edit.target_length} target tokens are still wrong after {steps} steps"


def stored_expert(expert: Expert) -> np.ndarray | LowRankArrays:
    """An expert as its file holds it: float32 (d, h), or the two factors in float16."""
    if isinstance(expert, Tensor):
        return expert.cpu().numpy()
    return LowRankArrays(*(factor.half().cpu().numpy() for factor in (expert.a, expert.b)))


def _tensors(expert: ExpertFit, neuron: NeuronCandidate) -> EditTensors:
    """The content of an edit's file."""
    refitted = list(neuron.refitted.items())
    return EditTensors(
        stored_expert(expert.expert),
        neuron.fit.neuron.numpy(),
        neuron.keys.squeeze(0).numpy(),
        torch.stack([row for _expert, row in refitted]).numpy() if refitted else None,
        np.array([other for other, _row in refitted]) if refitted else None,
    )
