"""`MethodEditor`: a project that edits by another method than SCEN. Learns edits in batches and commits them, answers,
and takes edits back by learning the others anew.

What the method has learned is one file, which each batch replaces; the ledger says which edits it holds.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scen_cli.baselines.catalogue import find_method, make_method
from scen_cli.baselines.generate import answer
from scen_cli.baselines.method import Method, MethodContext, attached, make_settings
from scen_cli.data.entries import Entry
from scen_cli.data.records import EditRecord, SourceLine
from scen_cli.editing.create_project import BaseOptions
from scen_cli.editing.edit_run import Outcome, Plan, outcome_of, precheck
from scen_cli.editing.project_editor import ProjectEditor
from scen_cli.errors import VERIFY_HINT, DamageFound, UsageError
from scen_cli.model.base import Base
from scen_cli.model.generation import MAX_NEW_TOKENS
from scen_cli.model.keys import KeyConfig
from scen_cli.model.template import Prompt
from scen_cli.neurons.build_guard import make_guard
from scen_cli.project.commit_rows import TrainedEdit, TrainingStats
from scen_cli.project.ledger_rows import Edit
from scen_cli.project.method_batches import batches_without, commit_batch, revert_batch
from scen_cli.project.method_state import read_state, state_setting
from scen_cli.project.project import Project
from scen_cli.project.settings import FORMAT

UNUSED_THETA = 0.5  # every ledger has one; no other method asks for it


class MethodEditor(ProjectEditor):
    """Learns edits on a project's base by the project's method, and answers with all it has learned."""

    def __init__(self, project: Project, device: str = "auto", base: Base | None = None) -> None:
        """Raises `DamageFound` if what was learned is not what was committed."""
        super().__init__(project, device, base)
        prompts = [prompt.prompt for prompt in project.ledger.guard()]
        seed = int(project.settings["seed"])
        self.given = MethodContext(self.base, self.template, self.edited.index, prompts, seed=seed)
        self.method = self._as_committed()

    def _new(self) -> Method:
        recipe = self.project.settings["recipe"]
        try:
            return make_method(recipe["name"], self.given, recipe["settings"])
        except (UsageError, LookupError) as error:  # they could be when the project was made
            raise DamageFound(f"the method in `scen.db` cannot be: {error}", VERIFY_HINT) from error

    def _as_committed(self) -> Method:
        """The method with all that was committed."""
        self._known = state_setting(self.project.ledger)
        state = read_state(self.project.folder, self.project.ledger)
        if state is None:
            raise DamageFound("the method's state is not named in `scen.db`", VERIFY_HINT)
        method = self._new()
        try:
            method.load({name: torch.from_numpy(array) for name, array in state.items()})
        except (LookupError, TypeError, ValueError, RuntimeError) as error:
            raise DamageFound(f"the method's state cannot be read: {error}", VERIFY_HINT) from error
        return method

    def catch_up(self) -> None:
        """Take in what another process has committed since."""
        if state_setting(self.project.ledger) != self._known:
            self.method = self._as_committed()

    def edit_batch(self, records: Sequence[tuple[EditRecord, SourceLine]]) -> list[Edit]:
        """Learn edits together and commit them. They are active, whatever the model answers; what it answers instead
        of a target is their `reason`. If the method breaks down over a batch, it learns its edits one by one; an edit
        that it breaks down over alone fails.

        Call inside `project.writing()`. Raises `UsageError` for a record that can never be learned.
        """
        for record, _where in records:
            self.prepare(record)
        self.catch_up()
        started = time.perf_counter()
        try:
            broken = learned(self.method, [record for record, _where in records])
            if broken:
                self.method = self._as_committed()
                if len(records) > 1:
                    return [edit for one in records for edit in self.edit_batch([one])]
            reasons = self._reasons([record for record, _where in records], broken)
            trained = [
                TrainedEdit(record, where, not broken, reason=reason)
                for (record, where), reason in zip(records, reasons, strict=True)
            ]
            training = TrainingStats(int(self.project.settings["seed"]), time.perf_counter() - started)
            state = None if broken else arrays_of(self.method.state())
            edits = commit_batch(self.project, trained, training, state)
        except BaseException:
            self.method = self._as_committed()  # what was learned and not committed is forgotten
            raise
        self._known = state_setting(self.project.ledger)
        return edits

    def _reasons(self, records: Sequence[EditRecord], broken: str) -> list[str]:
        """What is to be said of each record: nothing, if the model answers its target."""
        if broken:
            return [broken] * len(records)
        answers = self.answer([record.prompt for record in records], at_least=[record.target for record in records])
        pairs = zip(answers, records, strict=True)
        return ["" if text == record.target else f"the model answers {text!r}" for text, record in pairs]

    def revert(self, *edit_ids: int) -> list[Edit]:
        """Take edits back as if they had never been made: a method that starts anew learns all others, in the batches
        they were made in, those that others have superseded among them. Call inside `project.writing()`.

        Raises `UsageError` when there is no such edit, one is not active, or the method breaks down over the others.
        """
        batches = batches_without(self.project, edit_ids)
        method = self._new()
        method.prepare()
        for batch in batches:
            records = [EditRecord(prompt=edit.prompt, target=edit.target, subject=edit.subject) for edit in batch]
            if broken := learned(method, records):
                raise UsageError(f"without these edits the others cannot be learned anew: {broken}")
        reverted = revert_batch(self.project, edit_ids, arrays_of(method.state()))
        self.method, self._known = method, state_setting(self.project.ledger)
        return reverted

    def answer(
        self, prompts: Sequence[Prompt], patched: bool = True, at_least: Sequence[str] = (), **options: Any
    ) -> list[str]:
        """Greedy answers, or as `options` for `generate` say, by the edited model, or by the base alone: as long as the
        longest active target, or one of `at_least`, takes."""
        self.prompt_ids(prompts)
        if not self.project.is_writing:
            self.catch_up()
        long = self.project.ledger.long_targets(MAX_NEW_TOKENS // 2)  # no token stands for less than half a byte
        targets = [*long, *((target, target) for target in at_least)]
        lengths = [len(self.template.target_ids(prompt, target)) for prompt, target in targets]
        options = {"max_new_tokens": max([MAX_NEW_TOKENS, *lengths]), **options}
        with attached(self.method, patched):
            return answer(self.base, self.template, prompts, self.method if patched else None, **options)

    def why(self, prompt: str) -> str:
        """What the method makes of a prompt, in words."""
        with attached(self.method):
            return self.method.why(prompt)


def new_method_project(
    folder: Path,
    method: str,
    asked: BaseOptions,
    changes: Mapping[str, Any] | None = None,
    guard: Path | None = None,
    base: Base | None = None,
    author: str | None = None,
) -> Project:
    """Make a project that edits by another method than SCEN. What that does once, before the first edit, is done here.
    `guard` is a file of prompts that no edit claims; without one the base writes some.

    Raises `UsageError` as `new_project` does, and for a method or setting that there is not.
    """
    settings = method_settings(method, changes or {})
    ready = asked.load(folder, base)
    kept = make_guard(ready.base, ready.template, ready.edited, KeyConfig(), asked.seed, guard)
    prompts = [prompt for prompt, _split, _source in kept.prompts]
    new = make_method(
        method, MethodContext(ready.base, ready.template, ready.edited.index, prompts, seed=asked.seed), settings
    )
    new.prepare()
    recipe = {"name": method, "settings": settings}
    told = {"format": FORMAT, **ready.settings, "method": method, "recipe": recipe}
    return Project.create(folder, told, UNUSED_THETA, kept, author, arrays_of(new.state()))


def learned(method: Method, records: Sequence[EditRecord]) -> str:
    """Have a method learn a batch, by prompt, target and subject alone: rephrases are what it is scored with. Returns
    why it broke down over it, or nothing."""
    bare = [EditRecord(prompt=one.prompt, target=one.target, subject=one.subject) for one in records]
    try:
        method.fit(bare)
    except torch.linalg.LinAlgError as error:
        return str(error).splitlines()[0]
    finite = all(bool(one.isfinite().all()) for one in method.state().values() if one.is_floating_point())
    return "" if finite else "it diverged: a lower rate may help"


def arrays_of(state: Mapping[str, Tensor]) -> dict[str, Any]:
    return {name: one.detach().cpu().numpy() for name, one in state.items()}


def method_settings(method: str, changes: Mapping[str, Any]) -> dict[str, Any]:
    """All settings of a method. Raises `UsageError` for a method or setting that there is not, and for SCEN."""
    if method == "scen":
        raise UsageError("`--method` is for other methods", hint="SCEN is what `scen init` makes: `--recipe`")
    typed = {name: None if value == "none" else value for name, value in changes.items()}
    return make_settings(find_method(method).settings_type, typed).model_dump()


def plan_for(editor: MethodEditor, entries: Sequence[Entry]) -> Plan:
    """Foresee each record's fate. Contradictions in other words are not looked for: they are told by SCEN's keys."""
    return Plan(entries, [precheck(editor, entry) for entry in entries])


def learn(editor: MethodEditor, plan: Plan) -> Iterator[dict[int, Outcome]]:
    """Learn and commit what is planned, in the method's batches, in order. Yields what became of each record, by its
    place, and puts it into the plan."""
    wanted = plan.wanted()
    size = editor.method.settings.batch or max(len(wanted), 1)
    for start in range(0, len(wanted), size):
        some = wanted[start : start + size]
        edits = editor.edit_batch([(record, where) for _place, record, where in some])
        made = {
            place: outcome_of(editor, edit, where) for (place, _record, where), edit in zip(some, edits, strict=True)
        }
        for place, outcome in made.items():
            plan.outcomes[place] = outcome
        yield made
