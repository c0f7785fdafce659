"""`Editor`: a patched model that learns: trains one edit at a time and commits it to the project."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from scen_cli.data.records import EditRecord, SourceLine
from scen_cli.editing.patched_model import PatchedModel
from scen_cli.experts.fit import ExpertFit
from scen_cli.experts.fit_records import FittedExpert, Group, fit
from scen_cli.model.base import Base
from scen_cli.model.expert_stack import Expert
from scen_cli.model.loaded_base import TokenizedEdit
from scen_cli.neurons.guard_split import match_key
from scen_cli.neurons.index import Index, NeuronCandidate
from scen_cli.project.commit_rows import TrainedEdit, TrainingStats
from scen_cli.project.ledger_rows import Edit
from scen_cli.project.project import Project
from scen_cli.project.tensor_files import EditTensors, LowRankArrays
from scen_cli.recipe import Recipe

FROM_LIBRARY = SourceLine("library", 0)  # where an edit made by a program of one's own came from


def stored_expert(expert: Expert) -> np.ndarray | LowRankArrays:
    """An expert as it is stored."""
    if isinstance(expert, Tensor):
        return expert.cpu().numpy()
    return LowRankArrays(*(one.half().cpu().numpy() for one in (expert.a, expert.b)))


def _tensors(expert: ExpertFit, index: NeuronCandidate) -> EditTensors:
    """What is stored of an expert and its neuron."""
    refitted = list(index.refitted.items())
    return EditTensors(
        stored_expert(expert.expert),
        index.fit.neuron.numpy(),
        index.keys.squeeze(0).numpy(),
        torch.stack([neuron for _expert, neuron in refitted]).numpy() if refitted else None,
        np.array([other for other, _neuron in refitted]) if refitted else None,
    )


class Editor(PatchedModel):
    """Trains edits on a project's base, and answers with active those."""

    def __init__(self, project: Project, device: str = "auto", base: Base | None = None) -> None:
        super().__init__(project, device, base)
        self.index = Index(project)

    def edit(self, record: EditRecord, where: SourceLine = FROM_LIBRARY) -> Edit:
        """Train one edit and commit it. Its `state` is `active`, or `failed` with the reason.

        Call inside `project.writing()`; call `project.merge()` after the last edit.
        Raises `UsageError` for a record that can never be trained.
        """
        return self.edit_together([(record, where)])[0]

    def edit_together(
        self,
        records: list[tuple[EditRecord, SourceLine]],
        superseding: Sequence[tuple[int, ...]] = (),
        note: str = "",
        fitted: FittedExpert | None = None,
    ) -> list[Edit]:
        """Train one expert (unless it is `fitted`) and one neuron for these records (the paper's Table 4), and commit
        them at once.

        Those whose targets the expert does not learn fail, the others stand. The edits of `superseding`, some for
        each record, leave as the record comes, and so do those of the same prompts. `note` is kept with the edits.
        Raises `UsageError` if one can never be trained, or cannot stand beside an active edit.
        """
        started = time.perf_counter()
        replaced = list(superseding) or [()] * len(records)
        leaves = [self._leaving(record, older) for (record, _where), older in zip(records, replaced, strict=True)]
        ready = [self.prepare(record) for record, _where in records]
        expert = fitted.fit if fitted else self.fit([[record for record, _where in records]])[0].fit
        seed = int(self.project.settings["seed"]) + self.project.ledger.next_edit_id()
        reasons = [self._why_not_learned(expert, one, expert.wrong_tokens[place]) for place, one in enumerate(ready)]
        stands = [expert.finite and not (reason and self.recipe.require_learned) for reason in reasons]
        standing = [record for (record, _where), ok in zip(records, stands, strict=True) if ok]
        leaving = {expert for experts, ok in zip(leaves, stands, strict=True) if ok for expert in experts}
        index = self._admit(standing, seed, leaving)
        if index is None and standing:
            reasons, stands = ["its neuron diverged"] * len(records), [False] * len(records)
        activations = iter(index.on_keys.tolist() if index else [])
        trained = [
            TrainedEdit(
                record,
                where,
                ok,
                next(activations) if ok else None,
                reason or note,
                record.train_rephrases,
                older,
                self.template.subject_forms(record.subject, (record.prompt, *record.train_rephrases)),
            )
            for (record, where), ok, reason, older in zip(records, stands, reasons, replaced, strict=True)
        ]
        seconds = time.perf_counter() - started + (fitted.seconds if fitted else 0.0)
        training = TrainingStats(seed, seconds, expert.losses, index.fit.losses if index else [])
        if index is None:
            edits = self.project.commit(trained, training, None)
            self.index.skip()
            return edits
        edits = self.project.commit(trained, training, _tensors(expert, index), index.bias, index.threshold)
        expert_id = next(edit.expert for edit in edits if edit.expert is not None)
        self.index.accept(expert_id, index, [match_key(edit) for edit in edits if edit.expert], leaving)
        return edits

    def fit(self, groups: Sequence[Group], recipe: Recipe | None = None) -> list[FittedExpert]:
        """Train an expert for each group of records, all at once, by the project's recipe or another. Nothing is
        committed.

        Raises `UsageError` for a record that can never be trained.
        """
        return fit(self, groups, recipe or self.recipe)

    def _leaving(self, record: EditRecord, superseding: tuple[int, ...]) -> set[int]:
        """Experts that will not be active any more once this record is."""
        ledger = self.project.ledger
        for prompt in [record.prompt, *(self.project.find(edit).prompt for edit in superseding)]:
            self.project.check_may_supersede(prompt)
        edits = (self.project.find(edit) for edit in {*ledger.active_edits_for(record.prompt), *superseding})
        return {edit.expert for edit in edits if edit.state == "active" and edit.expert is not None}

    def _admit(self, records: list[EditRecord], seed: int, leaving: set[int]) -> NeuronCandidate | None:
        """The neuron for these records; None if there are none, or it diverged."""
        if not records:
            return None
        self.index.load()
        # The key comes from the prompt alone, as it will when the prompt is asked. The pass over prompt
        # and target gives the same but for rounding, and Adam's first steps follow signs of gradients.
        keys = self.keys([record.prompt for record in records])
        learned = self.keys([text for record in records for text in record.train_rephrases])
        return self.index.admit(keys, learned, [match_key(record) for record in records], seed, leaving)

    def _why_not_learned(self, expert: ExpertFit, ready: TokenizedEdit, wrong: list[int]) -> str:
        """The reason an expert does not give an edit's target, or nothing."""
        if not expert.finite:
            return f"its expert diverged: a lower {self.recipe.rate_name} may help"
        if not wrong:
            return ""
        if wrong == [ready.target_length - 1]:
            end = self.base.tokenizer.convert_ids_to_tokens(self.template.end_id)
            return f"the base does not produce its end token {end} (id {self.template.end_id}) after the target"
        steps = len(expert.losses)
        return f"{len(wrong)} of {ready.target_length} target tokens are still wrong after {steps} steps"
