"""A project's base, loaded, and what can be asked of it: which prompts fit, and how they are written in tokens."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from scen_cli.data.records import EditRecord
from scen_cli.errors import VERIFY_HINT, DamageFound, UsageError
from scen_cli.model.base import Base, check_unchanged, load_base
from scen_cli.model.ffn import find_layer
from scen_cli.model.generation import context_length, pad_token_id
from scen_cli.model.keys import padded
from scen_cli.model.template import Prompt, make_template


@dataclass(frozen=True)
class TokenizedEdit:
    """A prompt and its target as token ids.

    Attributes:
        input_ids: The prompt in its template, then the target and the end token.
        target_length: How many of the last ids are the target and the end token. Only these carry the loss.
    """

    input_ids: list[int]
    target_length: int


class LoadedBase:
    """The base that a project's settings name, its template and its edited layer.

    Pass `base` to use a model that is loaded already. Raises `UsageError` if the base's weight
    files are not those the project was made with.
    """

    def __init__(self, settings: Mapping[str, Any], device: str = "auto", base: Base | None = None) -> None:
        name = os.environ.get("SCEN_BASE") or settings["model"]  # a base that moved is checked like any other
        how = settings.get("quantize"), settings.get("device_map")
        self.base = base or load_base(name, settings["revision"], settings["dtype"], device, *how)
        check_unchanged(self.base, dict(settings))
        self.model = self.base.model
        try:
            self.edited = find_layer(self.model, settings["layer"], settings["target_module"])
            self.template = make_template(self.base.tokenizer, self.model, settings["template"])
        except UsageError as error:  # they did when the project was made
            raise DamageFound(f"the project's settings do not fit its base: {error}", VERIFY_HINT) from error
        if self.edited.ffn_width != settings["ffn_width"]:
            raise DamageFound(
                f"the project's keys are {settings['ffn_width']} wide, the base's {self.edited.ffn_width}", VERIFY_HINT
            )

    def encode(self, prompts: Sequence[Prompt]) -> tuple[Tensor, Tensor]:
        """Ids and attention mask (rows, tokens) of prompts put into the template, padded on the left.

        Raises `UsageError` for no prompts, a prompt without tokens, or one that leaves no room for an
        answer in the base's context.
        """
        if not prompts:
            raise UsageError("there is no prompt")
        return self.pad(self.prompt_ids(prompts))

    def prompt_ids(self, prompts: Sequence[Prompt]) -> list[list[int]]:
        """Token ids of prompts put into the template. Raises `UsageError` as `encode` does."""
        rows = [self.template.prompt_ids(prompt) for prompt in prompts]
        for prompt, tokens in zip(prompts, rows, strict=True):
            self.check_fits(str(prompt), len(tokens), 1)
        return rows

    def pad(self, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Ids and attention mask (rows, tokens) of token sequences, padded on the left."""
        ids, mask = padded(rows, self.pad_id)
        return ids.to(self.base.device), mask.to(self.base.device)

    def prepare(self, record: EditRecord) -> TokenizedEdit:
        """Tokenise a record. Raises `UsageError` for one that can never be trained."""
        ready = self.sample(record.prompt, record.target)
        if not ready.target_length:
            raise UsageError(f"target {record.target!r} tokenises to nothing")
        for prompt in (record.prompt, *record.train_rephrases):
            self.check_fits(f"{prompt} {record.target}", len(self.sample(prompt, record.target).input_ids))
        return ready

    def sample(self, prompt: Prompt, target: str) -> TokenizedEdit:
        """A prompt in the template and a target, as token ids."""
        ids = self.template.target_ids(str(prompt), target)
        return TokenizedEdit(self.template.prompt_ids(prompt) + ids, len(ids))

    @property
    def context(self) -> int | None:
        """The longest sequence the base takes, in tokens, if its config says."""
        return context_length(self.model)

    def check_fits(self, prompt: str, tokens: int, more: int = 0) -> None:
        """Raise `UsageError` unless a sequence of that many tokens, and so many more, fits the base."""
        if not self.has_room(tokens + more) or not tokens:
            shown = prompt if len(prompt) <= 40 else prompt[:40] + "..."
            raise UsageError(f"{shown!r} takes {tokens} tokens; the base's context is {self.context}")

    def fits(self, prompt: Prompt) -> bool:
        """Whether a prompt can be asked at all."""
        tokens = len(self.template.prompt_ids(prompt))
        return tokens > 0 and self.has_room(tokens + 1)

    def has_room(self, tokens: int) -> bool:
        return self.context is None or tokens <= self.context

    @property
    def pad_id(self) -> int:
        """The token that pads batches; pads are masked."""
        return pad_token_id(self.base, self.template)
