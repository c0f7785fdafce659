"""`PatchedModel`: a project's edits on its loaded base. Routes prompts, generates, answers."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from scen_cli.editing.recipe import Recipe
from scen_cli.errors import UsageError
from scen_cli.model.base import Base, digest_of, files_stamp, load_base
from scen_cli.model.ffn import find_layer
from scen_cli.model.patch import BASE, Patch, Route, read_keys
from scen_cli.model.template import make_template
from scen_cli.project.project import Merged, Project

MAX_NEW_TOKENS = 50
BATCH = 64  # prompts generated together
CACHE_BYTES = 4 << 30  # experts kept in memory while a patch is in use


@dataclass(frozen=True)
class Answers:
    """Answers to some prompts, and which edit gave each (None: the base)."""

    texts: list[str]
    edits: list[int | None]


class ProjectBank:
    """A project's neurons, and its experts as they are asked for."""

    def __init__(self, project: Project, merged: Merged, expert_bytes: int, device: torch.device) -> None:
        self.neurons = torch.from_numpy(merged.neurons).to(device)
        self.expert = lru_cache(maxsize=max(1, CACHE_BYTES // expert_bytes))(
            lambda row: torch.from_numpy(project.expert(merged.edits[row])).to(device)
        )


class PatchedModel:
    """A project's base, loaded, with the edits in force. `detach()` leaves the base as it was.

    Pass `base` to use a model that is loaded already. Raises `UsageError` if the base's weight
    files are not those the project was made with.
    """

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

    def key(self, prompt: str) -> Tensor:
        """The key (h,) of a prompt, float32, on the CPU."""
        ids, mask = self.encode([prompt])
        return read_keys(self.model, self.edited.down_proj, ids, mask)[0].cpu()

    def patch(self) -> Patch:
        """The edits in force, attached to the base; made anew when the ledger has changed."""
        theta = self.project.ledger.theta()
        edits = [edit_id for edit_id, _prompt in self.project.ledger.prompts_in_force()]
        if self._patch is None or edits != self._patch_edits or theta != self._patch.theta:
            self.detach()
            merged = self.project.merged()
            expert_bytes = self.edited.down_proj.weight.numel() * 4
            bank = ProjectBank(self.project, merged, expert_bytes, self.base.device)
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
        options = {"pad_token_id": self.pad_id, "eos_token_id": list(self.template.end_ids), **options}
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
