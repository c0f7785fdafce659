"""`Editor`: a patched model that learns: trains one edit at a time and commits it to the project."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from scen_cli.data.records import EditRecord, SourceLine
from scen_cli.editing.experts import ExpertFit, fit_expert
from scen_cli.editing.neurons import fit_neuron
from scen_cli.editing.prefix import record_prefix
from scen_cli.errors import UsageError
from scen_cli.model.base import Base
from scen_cli.model.patch import activations_of
from scen_cli.patched_model import PatchedModel
from scen_cli.project.ledger import Edit
from scen_cli.project.project import Project, Training
from scen_cli.project.store import EditTensors

FROM_LIBRARY = SourceLine("library", 0)  # where an edit made by a program of one's own came from


@dataclass(frozen=True)
class Prepared:
    """A record as token ids: the whole sequence, and how many of its last tokens are the target."""

    input_ids: list[int]
    target_length: int


class Editor(PatchedModel):
    """Trains edits on a project's base, and answers with those in force."""

    def __init__(self, project: Project, device: str = "auto", base: Base | None = None) -> None:
        super().__init__(project, device, base)
        self._keys: dict[int, Tensor] = {}  # of earlier edits: a key never changes

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
        started = time.perf_counter()
        ready = self.prepare(record)
        input_ids = torch.tensor([ready.input_ids], device=self.base.device)
        prefix = record_prefix(self.model, self.edited, input_ids)
        expert = fit_expert(self.model, self.edited, prefix, input_ids, ready.target_length, self.recipe)
        seed = int(self.project.settings["seed"]) + self.project.ledger.next_edit_id()
        failure = self._why_not_learned(expert, ready)
        if failure:
            training = Training(seed, time.perf_counter() - started, expert.losses, failure=failure)
            return self.project.commit(record, where, training, None)
        # The key comes from the prompt alone, as it will when the prompt is asked. The pass over prompt
        # and target gives the same but for rounding, and Adam's first steps follow signs of gradients.
        key = self.key(record.prompt)
        earlier = self._earlier_keys(record.prompt)
        neuron = fit_neuron(key, earlier, self.recipe, seed)
        if not neuron.neuron.isfinite().all():
            training = Training(seed, time.perf_counter() - started, expert.losses, failure="its neuron diverged")
            return self.project.commit(record, where, training, None)
        activation = activations_of(key[None], neuron.neuron[None], self.recipe.normalise).item()
        tensors = EditTensors(expert.weight.cpu().numpy(), neuron.neuron.numpy(), key.numpy())
        training = Training(seed, time.perf_counter() - started, expert.losses, neuron.losses, activation)
        edit = self.project.commit(record, where, training, tensors)
        self._keys[edit.id] = key
        return edit

    def _earlier_keys(self, prompt: str) -> Tensor:
        """Keys (t-1, h) of all edits in force, but for one that this prompt's new edit supersedes."""
        earlier = [edit for edit, other in self.project.ledger.prompts_in_force() if other != prompt]
        if not self.recipe.train_neuron:
            earlier = []  # nothing is trained against them
        for edit in earlier:
            if edit not in self._keys:
                self._keys[edit] = torch.from_numpy(self.project.key(edit))
        return torch.stack([self._keys[edit] for edit in earlier]) if earlier else torch.empty(0, self.edited.ffn_width)

    def _why_not_learned(self, expert: ExpertFit, ready: Prepared) -> str:
        """The reason an expert cannot be used, or nothing."""
        wrong = expert.wrong_tokens
        if not expert.weight.isfinite().all():
            return "its expert diverged: a lower expert_lr may help"
        if not wrong:
            return ""
        if wrong == [ready.target_length - 1]:
            end = self.base.tokenizer.convert_ids_to_tokens(self.template.end_id)
            return f"the base does not produce its end token {end} (id {self.template.end_id}) after the target"
        steps = self.recipe.expert_steps
        return f"{len(wrong)} of {ready.target_length} target tokens are still wrong after {steps} steps"
