"""`Editor`: a patched model that learns: trains one edit at a time and commits it to the project."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from scen_cli.data.records import EditRecord, SourceLine
from scen_cli.editing.experts import ExpertFit, Sample, fit_expert
from scen_cli.editing.neurons import NeuronFit, fit_neuron
from scen_cli.editing.prefix import record_prefix
from scen_cli.errors import UsageError
from scen_cli.model.base import Base
from scen_cli.model.patch import activations_of
from scen_cli.patched_model import PatchedModel
from scen_cli.project.ledger import Edit
from scen_cli.project.project import Project, Trained, Training
from scen_cli.project.store import EditTensors

FROM_LIBRARY = SourceLine("library", 0)  # where an edit made by a program of one's own came from


@dataclass(frozen=True)
class Prepared:
    """A record as token ids: the whole sequence, and how many of its last tokens are the target."""

    input_ids: list[int]
    target_length: int


@dataclass(frozen=True)
class _Index:
    """A neuron, the keys (n, h) it is to fire on, and its activations there."""

    keys: Tensor
    fit: NeuronFit
    activations: list[float]


class Editor(PatchedModel):
    """Trains edits on a project's base, and answers with those in force."""

    def __init__(self, project: Project, device: str = "auto", base: Base | None = None) -> None:
        super().__init__(project, device, base)
        self._keys: dict[int, Tensor] = {}  # (n, h) of each earlier expert: a key never changes

    def prepare(self, record: EditRecord) -> Prepared:
        """Tokenise a record. Raises `UsageError` for one that can never be trained."""
        prompt = self.template.prompt_ids(record.prompt)
        target = self.template.target_ids(record.prompt, record.target)
        if not target:
            raise UsageError(f"target {record.target!r} tokenises to nothing")
        self.check_fits(f"{record.prompt} {record.target}", len(prompt) + len(target))
        return Prepared(prompt + target, len(target))

    def edit(self, record: EditRecord, where: SourceLine = FROM_LIBRARY) -> Edit:
        """Train one edit and commit it. Its `state` is `active`, or `failed` with the reason.

        Call inside `project.writing()`; call `project.merge()` after the last edit.
        Raises `UsageError` for a record that can never be trained.
        """
        return self.edit_together([(record, where)])[0]

    def edit_together(self, records: list[tuple[EditRecord, SourceLine]]) -> list[Edit]:
        """Train one expert and one neuron for these records (the paper's Table 4), and commit them at once.

        Those whose targets the expert does not learn fail, the others stand.
        """
        started = time.perf_counter()
        for record, _where in records:
            self.project.check_may_supersede(record.prompt)
        ready = [self.prepare(record) for record, _where in records]
        expert = fit_expert(self.model, self.edited, [self._sample(one) for one in ready], self.recipe)
        seed = int(self.project.settings["seed"]) + self.project.ledger.next_edit_id()
        reasons = [
            self._why_not_learned(expert, one, wrong) for one, wrong in zip(ready, expert.wrong_tokens, strict=True)
        ]
        usable = bool(expert.weight.isfinite().all())
        stands = [usable and not (reason and self.recipe.require_learned) for reason in reasons]
        prompts = [record.prompt for record, _where in records]
        index = self._index([prompt for prompt, ok in zip(prompts, stands, strict=True) if ok], prompts, seed)
        if index is None and any(stands):
            reasons, stands = ["its neuron diverged"] * len(records), [False] * len(records)
        activations = iter(index.activations if index else [])
        trained = [
            Trained(record, where, ok, next(activations) if ok else None, reason)
            for (record, where), ok, reason in zip(records, stands, reasons, strict=True)
        ]
        neuron_losses = index.fit.losses if index else []
        training = Training(seed, time.perf_counter() - started, expert.losses, neuron_losses)
        if index is None:
            return self.project.commit(trained, training, None)
        tensors = EditTensors(expert.weight.cpu().numpy(), index.fit.neuron.numpy(), index.keys.squeeze(0).numpy())
        edits = self.project.commit(trained, training, tensors)
        self._keys.update({edit.expert: index.keys for edit in edits if edit.expert is not None})
        return edits

    def _index(self, prompts: list[str], superseding: list[str], seed: int) -> _Index | None:
        """The neuron for these prompts, against all others; None if there are none, or it diverged."""
        if not prompts:
            return None
        # The key comes from the prompt alone, as it will when the prompt is asked. The pass over prompt
        # and target gives the same but for rounding, and Adam's first steps follow signs of gradients.
        keys = torch.stack([self.key(prompt) for prompt in prompts])
        fit = fit_neuron(keys, self._earlier_keys(set(superseding)), self.recipe, seed)
        if not fit.neuron.isfinite().all():
            return None
        return _Index(keys, fit, activations_of(keys, fit.neuron[None], self.recipe.normalise)[:, 0].tolist())

    def _sample(self, ready: Prepared) -> Sample:
        input_ids = torch.tensor([ready.input_ids], device=self.base.device)
        return Sample(record_prefix(self.model, self.edited, input_ids), input_ids, ready.target_length)

    def _earlier_keys(self, new_prompts: set[str]) -> Tensor:
        """Keys (t-1, h) of all edits in force, but for those that the new prompts' edits supersede."""
        if not self.recipe.train_neuron:
            return torch.empty(0, self.edited.ffn_width)  # nothing is trained against them
        expert_of = self.project.ledger.experts_in_force()
        prompts = self.project.ledger.prompts_in_force()
        experts = dict.fromkeys(expert_of[edit] for edit, prompt in prompts if prompt not in new_prompts)
        for expert in experts:
            if expert not in self._keys:
                self._keys[expert] = torch.from_numpy(self.project.keys(expert))
        return torch.cat([self._keys[expert] for expert in experts] or [torch.empty(0, self.edited.ffn_width)])

    def _why_not_learned(self, expert: ExpertFit, ready: Prepared, wrong: list[int]) -> str:
        """The reason an expert does not give an edit's target, or nothing."""
        if not expert.weight.isfinite().all():
            return "its expert diverged: a lower expert_lr may help"
        if not wrong:
            return ""
        if wrong == [ready.target_length - 1]:
            end = self.base.tokenizer.convert_ids_to_tokens(self.template.end_id)
            return f"the base does not produce its end token {end} (id {self.template.end_id}) after the target"
        steps = self.recipe.expert_steps
        return f"{len(wrong)} of {ready.target_length} target tokens are still wrong after {steps} steps"
