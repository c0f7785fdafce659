"""`Editor`: a project and its loaded base together. What the commands, and library users, drive."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from scen_cli.data.records import EditRecord, SourceLine
from scen_cli.editing.experts import fit_expert
from scen_cli.editing.neurons import fit_neuron
from scen_cli.editing.prefix import record_prefix
from scen_cli.editing.recipe import Recipe
from scen_cli.errors import UsageError
from scen_cli.model.base import Base, digest_of, files_stamp, load_base
from scen_cli.model.ffn import find_layer
from scen_cli.model.patch import BASE, Patch, Route, read_keys
from scen_cli.model.template import make_template
from scen_cli.project.ledger import Edit
from scen_cli.project.project import Merged, Project, Training
from scen_cli.project.store import EditTensors

MAX_NEW_TOKENS = 50
BATCH = 64  # prompts generated together
CACHED_EXPERTS = 64  # experts kept in memory while a patch is in use


FROM_LIBRARY = SourceLine("library", 0)  # where an edit made by a program of one's own came from


@dataclass(frozen=True)
class Prepared:
    """A record as token ids: the whole sequence, and how many of its last tokens are the target."""

    input_ids: list[int]
    target_length: int


@dataclass(frozen=True)
class Answers:
    """Greedy answers to some prompts, and which edit gave each (None: the base)."""

    texts: list[str]
    edits: list[int | None]


class ProjectBank:
    """A project's neurons, and its experts as they are asked for."""

    def __init__(self, project: Project, merged: Merged, device: torch.device) -> None:
        self.neurons = torch.from_numpy(merged.neurons).to(device)
        self.expert = lru_cache(maxsize=CACHED_EXPERTS)(
            lambda row: torch.from_numpy(project.expert(merged.edits[row])).to(device)
        )


class Editor:
    """Opens a project's base and edits, routes and generates with it."""

    def __init__(self, project: Project, device: str = "auto", base: Base | None = None) -> None:
        settings = project.settings
        self.project = project
        self.recipe = Recipe.model_validate(settings["recipe"])
        self.base = base or load_base(
            settings["model"], settings["revision"], settings["dtype"], device, settings["trust_remote_code"]
        )
        check_unchanged(self.base, settings)
        self.model = self.base.model
        self.edited = find_layer(self.model, settings["layer"])
        self.template = make_template(self.base.tokenizer, self.model, settings["template"])
        self._patch: Patch | None = None
        self._patch_edits: list[int] = []
        self._keys: Tensor | None = None

    # -- editing ---------------------------------------------------------------------------------

    def prepare(self, record: EditRecord) -> Prepared:
        """Tokenise a record. Raises `UsageError` for one that can never be trained."""
        prompt = self.template.prompt_ids(record.prompt)
        target = self.template.target_ids(record.prompt, record.target)
        if not target:
            raise UsageError(f"target {record.target!r} tokenises to nothing")
        context = getattr(self.model.config, "max_position_embeddings", None)
        if context and len(prompt) + len(target) > context:
            raise UsageError(
                f"prompt and target take {len(prompt) + len(target)} tokens; the base's context is {context}"
            )
        return Prepared(prompt + target, len(target))

    def edit(self, record: EditRecord, where: SourceLine = FROM_LIBRARY) -> Edit:
        """Train one edit and commit it. Its `state` is `active`, or `failed` with the reason.

        Call inside `project.writing()`; call `project.merge()` after the last edit.
        Raises `UsageError` for a record that can never be trained.
        """
        started = time.perf_counter()
        ready = self.prepare(record)
        self.detach()
        input_ids = torch.tensor([ready.input_ids], device=self.base.device)
        prefix = record_prefix(self.model, self.edited, input_ids)
        expert = fit_expert(self.model, self.edited, prefix, input_ids, ready.target_length, self.recipe)
        seed = int(self.project.settings["seed"]) + self.project.ledger.next_edit_id()
        if expert.wrong_tokens:
            failure = self._why_not_learned(expert.wrong_tokens, ready)
            training = Training(seed, time.perf_counter() - started, expert.losses, failure=failure)
            return self.project.commit(record, where, training, None)
        key = self.key(record.prompt)
        earlier = self._earlier_keys(record.prompt)
        neuron = fit_neuron(key, earlier, self.recipe, seed)
        tensors = EditTensors(expert.weight.cpu().numpy(), neuron.neuron.numpy(), key.numpy())
        training = Training(seed, time.perf_counter() - started, expert.losses, neuron.losses)
        edit = self.project.commit(record, where, training, tensors)
        self._keys = torch.cat([earlier, key[None]])
        return edit

    def key(self, prompt: str) -> Tensor:
        """The key (h,) of a prompt, float32, on the CPU.

        Read from the prompt alone, as it will be when the prompt is asked: the pass over prompt
        and target gives the same key but for rounding, and Adam's first steps, which follow the
        gradient's sign, make visible differences of that where a key is near zero.
        """
        ids, mask = self.encode([prompt])
        return read_keys(self.model, self.edited.down_proj, ids, mask)[0].cpu()

    def _earlier_keys(self, prompt: str) -> Tensor:
        """Keys (t-1, h) of all edits in force, but for one that this prompt's new edit supersedes."""
        active = self.project.ledger.prompts_in_force()
        if self._keys is None or len(self._keys) != len(active):
            self._keys = torch.from_numpy(self.project.keys())
        keep = [other != prompt for _id, other in active]
        return self._keys[torch.tensor(keep, dtype=torch.bool)]

    def _why_not_learned(self, wrong: list[int], ready: Prepared) -> str:
        if wrong == [ready.target_length - 1]:
            end = self.base.tokenizer.convert_ids_to_tokens(self.template.end_id)
            return f"the base does not produce its end token {end} (id {self.template.end_id}) after the target"
        steps = self.recipe.expert_steps
        return f"{len(wrong)} of {ready.target_length} target tokens are still wrong after {steps} steps"

    # -- answering -------------------------------------------------------------------------------

    def patch(self) -> Patch:
        """The edits in force, attached to the base; made anew when the ledger has changed."""
        theta = self.project.ledger.theta()
        edits = [edit_id for edit_id, _prompt in self.project.ledger.prompts_in_force()]
        if self._patch is None or edits != self._patch_edits or theta != self._patch.theta:
            self.detach()
            merged = self.project.merged()
            bank = ProjectBank(self.project, merged, self.base.device)
            self._patch = Patch(self.edited.down_proj, bank, theta, self.recipe.normalise)
            self._patch_edits = merged.edits
        return self._patch

    def detach(self) -> None:
        """Leave the base as it was loaded."""
        if self._patch is not None:
            self._patch.detach()
        self._patch, self._patch_edits = None, []

    def encode(self, prompts: list[str]) -> tuple[Tensor, Tensor]:
        """Ids and attention mask (rows, tokens) of prompts put into the template, padded on the left."""
        rows = [self.template.prompt_ids(prompt) for prompt in prompts]
        width = max(map(len, rows))
        ids = torch.full((len(rows), width), self.pad_id)
        mask = torch.zeros_like(ids)
        for row, tokens in enumerate(rows):
            ids[row, width - len(tokens) :] = torch.tensor(tokens)
            mask[row, width - len(tokens) :] = 1
        return ids.to(self.base.device), mask.to(self.base.device)

    @property
    def pad_id(self) -> int:
        pad = self.base.tokenizer.pad_token_id
        return int(pad if pad is not None else self.template.end_id)

    def route(self, prompts: list[str]) -> Route:
        """Which edit each prompt calls, by `choice` into `edits_in_force`."""
        return self.patch().route(self.model, *self.encode(prompts))

    @property
    def edits_in_force(self) -> list[int]:
        """Edit ids in the order of W_merge's rows."""
        self.patch()
        return self._patch_edits

    def generate(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, choice: Tensor | None = None, **options: Any
    ) -> Any:
        """transformers' `generate` on the patched model, any decoding mode.

        `choice` (rows,) holds an index into `edits_in_force` or `BASE` for each row; without it
        each row is routed by its prompt.
        """
        options = {"pad_token_id": self.pad_id, "eos_token_id": self.template.end_id, **options}
        return self.patch().generate(self.model, self.model.generate, input_ids, attention_mask, choice, **options)

    def answer(
        self, prompts: list[str], *, patched: bool = True, experts: list[int] | None = None, **options: Any
    ) -> Answers:
        """Greedy answers (or as `options` for `generate` say), `BATCH` prompts at a time.

        By the patched model; with `patched=False` by the base alone; with `experts` (one edit id
        per prompt) by those edits' experts, whatever the neurons say.
        """
        options = {"do_sample": False, "max_new_tokens": MAX_NEW_TOKENS, **options}
        texts: list[str] = []
        edits: list[int | None] = []
        for start in range(0, len(prompts), BATCH):
            ids, mask = self.encode(prompts[start : start + BATCH])
            if experts is not None:
                rows = [self.edits_in_force.index(edit) for edit in experts[start : start + BATCH]]
                choice = torch.tensor(rows)
            elif patched:
                choice = self.patch().route(self.model, ids, mask).choice
            else:
                choice = torch.full((len(ids),), BASE)
            out = self.generate(ids, mask, choice, **options)
            texts += [self.template.answer(row) for row in out[:, ids.shape[1] :].tolist()]
            edits += [None if row == BASE else self.edits_in_force[row] for row in choice.tolist()]
        return Answers(texts, edits)


def check_unchanged(base: Base, settings: dict[str, Any]) -> None:
    """Raise `UsageError` if the base's weight files are not those the project was made with."""
    if files_stamp(base.folder) == settings["files_stamp"]:
        return
    if digest_of(base.folder) != settings["weights_digest"]:
        raise UsageError(
            f"the base's weights in `{base.folder}` have changed since this project was made: "
            "its keys and experts do not fit them",
            hint="restore the base, or make a new project and edit again",
        )
