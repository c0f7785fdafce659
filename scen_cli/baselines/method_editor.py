"""`MethodEditor`: the editor of a project that edits by another method than SCEN.

Everything the method has learned is one file, which each batch of edits replaces. The ledger records which edits the
file holds. A revert trains a new method on all other edits, in the batches in which they were made.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scen_cli.baselines.catalogue import find_method, make_method
from scen_cli.baselines.context import MethodContext, answer_tokens, batched
from scen_cli.baselines.method import Method, attached, make_settings
from scen_cli.data.entries import Entry
from scen_cli.data.records import EditRecord, SourceLine
from scen_cli.editing.create_project import BaseOptions
from scen_cli.editing.edit_plan import EditPlan, Outcome, outcome_of, precheck_all
from scen_cli.editing.loaded_project import LoadedProject
from scen_cli.errors import VERIFY_HINT, DamageFound, UsageError
from scen_cli.experts.fit_records import FitAll
from scen_cli.model.base import Base
from scen_cli.model.generation import Answers, Progress, no_progress
from scen_cli.model.keys import KeyConfig
from scen_cli.model.template import Prompt
from scen_cli.neurons.build_guard import make_guard
from scen_cli.project.ledger_queries import FORMAT
from scen_cli.project.ledger_rows import Edit
from scen_cli.project.method_batches import batches_without, commit_batch, revert_batch
from scen_cli.project.method_state import read_state, state_setting
from scen_cli.project.new_edits import TrainedEdit, TrainingStats
from scen_cli.project.project import Project

UNUSED_THETA = 0.5  # every ledger has a threshold; only SCEN uses it


class MethodEditor(LoadedProject):
    """Edits a project by the project's method, and answers with everything it has learned."""

    def __init__(self, project: Project, device: str = "auto", base: Base | None = None) -> None:
        """Raises `DamageFound` if the method's file is not what was committed."""
        super().__init__(project, device, base)
        prompts = [prompt.prompt for prompt in project.ledger.guard()]
        seed = int(project.settings["seed"])
        self.context_of_method = MethodContext(self.base, self.template, self.edited.index, prompts, seed=seed)
        self.method = self._load_committed()

    def _new_method(self) -> Method:
        recipe = self.project.settings["recipe"]
        try:
            return make_method(recipe["name"], self.context_of_method, recipe["settings"])
        except (UsageError, LookupError) as error:  # the settings were valid when the project was created
            raise DamageFound(f"the method in `scen.db` is not valid: {error}", VERIFY_HINT) from error

    def _load_committed(self) -> Method:
        """The method with everything that was committed."""
        self._committed = state_setting(self.project.ledger)
        state = read_state(self.project.folder, self.project.ledger)
        if state is None:
            raise DamageFound("`scen.db` does not name the method's file", VERIFY_HINT)
        method = self._new_method()
        try:
            method.load({name: torch.from_numpy(array) for name, array in state.items()})
        except (LookupError, TypeError, ValueError, RuntimeError) as error:
            raise DamageFound(f"the method's file cannot be read: {error}", VERIFY_HINT) from error
        return method

    def _reload_if_changed(self) -> None:
        """Load the method again if another process has committed since."""
        if state_setting(self.project.ledger) != self._committed:
            self.method = self._load_committed()

    def plan(
        self, entries: Sequence[Entry], policy: str = "refuse", reason: str = "", progress: Progress = no_progress
    ) -> EditPlan:
        """Find out what will become of each record. Contradictions in other words are not detected, whatever the
        `policy`: SCEN's keys would be needed."""
        return EditPlan(entries, precheck_all(self, self.project, entries, progress), reason=reason)

    def train(self, plan: EditPlan, batch: int = 1, fit_all: FitAll | None = None) -> Iterator[dict[int, Outcome]]:
        """Learn and commit what is planned, in order, in the method's own batches (`batch` and `fit_all` are SCEN's).

        Yields the outcomes of each batch by their positions, and fills them into the plan.
        """
        records = plan.to_train()
        size = self.method.settings.batch or max(len(records), 1)
        for group in batched(records, size):
            edits = self.edit_batch([(record, where) for _position, record, where in group])
            outcomes = {
                position: outcome_of(self.project, edit, where)
                for (position, _record, where), edit in zip(group, edits, strict=True)
            }
            for position, outcome in outcomes.items():
                plan.outcomes[position] = outcome
            yield outcomes

    def edit_batch(self, records: Sequence[tuple[EditRecord, SourceLine]]) -> list[Edit]:
        """Learn edits together and commit them. Call inside `project.writing()`.

        The edits become active whatever the model then answers; if it does not answer the target, the edit's `reason`
        says what it answers. If the method diverges on a batch, it learns the edits one by one; an edit that it
        diverges on alone fails.
        """
        self._reload_if_changed()
        started = time.perf_counter()
        try:
            problem = learn(self.method, [record for record, _where in records])
            if problem:
                self.method = self._load_committed()
                if len(records) > 1:
                    return [edit for pair in records for edit in self.edit_batch([pair])]
            reasons = self._reasons([record for record, _where in records], problem)
            trained = [
                TrainedEdit(record, where, not problem, reason=reason)
                for (record, where), reason in zip(records, reasons, strict=True)
            ]
            stats = TrainingStats(int(self.project.settings["seed"]), time.perf_counter() - started)
            edits = commit_batch(self.project, trained, stats, None if problem else to_arrays(self.method.state()))
        except BaseException:
            self.method = self._load_committed()  # what was learned but not committed is dropped
            raise
        self._committed = state_setting(self.project.ledger)
        return edits

    def _reasons(self, records: Sequence[EditRecord], problem: str) -> list[str]:
        """The remark on each record; empty if the model answers its target."""
        if problem:
            return [problem] * len(records)
        longest = self.longest_answer([(record.prompt, record.target) for record in records])
        answers = self.answer([record.prompt for record in records], max_new_tokens=longest).texts
        pairs = zip(answers, records, strict=True)
        return ["" if text == record.target else f"the model answers {text!r}" for text, record in pairs]

    def revert(self, *edit_ids: int) -> list[Edit]:
        """Revert edits as if they had never been made: a new method learns all other edits, superseded ones included,
        in the batches in which they were made. Call inside `project.writing()`.

        Raises:
            UsageError: An edit does not exist or is not active, or the method diverges on the other edits.
        """
        batches = batches_without(self.project, edit_ids)
        method = self._new_method()
        method.prepare()
        for batch in batches:
            if problem := learn(method, batch):
                raise UsageError(f"the method cannot learn the other edits without these: {problem}")
        reverted = revert_batch(self.project, edit_ids, to_arrays(method.state()))
        self.method, self._committed = method, state_setting(self.project.ledger)
        return reverted

    def answer(self, prompts: Sequence[Prompt], *, patched: bool = True, **options: Any) -> Answers:
        """Answers of the edited model, or of the base alone; greedy unless `options` of `generate` say otherwise.

        `edits` of the result are None: the method does not route.
        """
        self.prompt_ids(prompts)  # raises for a prompt that does not fit
        if not self.project.is_writing:
            self._reload_if_changed()
        options = {"max_new_tokens": self.longest_answer(), **options}
        with attached(self.method, patched):
            tokens = answer_tokens(self.base, self.template, prompts, self.method if patched else None, **options)
        return Answers([self.template.answer(answer) for answer in tokens], [None] * len(tokens), tokens)

    def explain(self, prompt: str) -> str:
        """What the method does with a prompt, in a sentence."""
        with attached(self.method):
            return self.method.why(prompt)


def new_method_project(
    folder: Path | str,
    method: str,
    options: BaseOptions,
    changes: Mapping[str, Any] | None = None,
    guard: Path | None = None,
    base: Base | None = None,
    author: str | None = None,
    progress: Progress = no_progress,
) -> Project:
    """Create a project that edits by another method than SCEN, and do what the method does once before its first edit.

    Args:
        folder: The project's folder.
        method: Name of the method (`scen init --method`).
        options: The base, and the layer to edit.
        changes: Settings of the method that differ from its defaults.
        guard: A file of unedited prompts; None: the default guard.
        base: The base, if it is loaded already.
        author: Recorded in the log.
        progress: Called with the number of guard prompts that are done, and of all.

    Raises:
        UsageError: As `new_project`; and for an unknown method or setting.
    """
    settings = method_settings(method, changes or {})
    checked = options.load(Path(folder), base)
    new_guard = make_guard(checked.base, checked.template, checked.edited, KeyConfig(), options.seed, guard, progress)
    prompts = [prompt for prompt, _split, _source in new_guard.prompts]
    context = MethodContext(checked.base, checked.template, checked.edited.index, prompts, seed=options.seed)
    new = make_method(method, context, settings)
    new.prepare()
    recipe = {"name": method, "settings": settings}
    recorded = {"format": FORMAT, **checked.settings, "method": method, "recipe": recipe}
    return Project.create(folder, recorded, UNUSED_THETA, new_guard, author, to_arrays(new.state()))


def learn(method: Method, records: Sequence[EditRecord | Edit]) -> str:
    """Fit a batch, by prompt, target and subject alone: rephrases are for scoring. Returns why the method diverged, or
    an empty text."""
    bare = [EditRecord(prompt=record.prompt, target=record.target, subject=record.subject) for record in records]
    try:
        method.fit(bare)
    except torch.linalg.LinAlgError as error:
        return str(error).splitlines()[0]
    floats = [tensor for tensor in method.state().values() if tensor.is_floating_point()]
    return "" if all(bool(tensor.isfinite().all()) for tensor in floats) else "it diverged: a lower rate may help"


def to_arrays(state: Mapping[str, Tensor]) -> dict[str, Any]:
    return {name: tensor.detach().cpu().numpy() for name, tensor in state.items()}


def method_settings(method: str, changes: Mapping[str, Any]) -> dict[str, Any]:
    """All settings of a method. Raises `UsageError` for an unknown method or setting, and for SCEN."""
    if method == "scen":
        raise UsageError("`--method` is for other methods", hint="SCEN is the default: choose a `--recipe`")
    values = {name: None if value == "none" else value for name, value in changes.items()}
    return make_settings(find_method(method).settings_type, values).model_dump()
