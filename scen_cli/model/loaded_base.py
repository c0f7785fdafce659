"""`LoadedBase`: a project's base with its template and edited layer; tokenises prompts and checks that they fit."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from scen_cli.data.records import EditRecord
from scen_cli.data.words import plain
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
    """The base that a project's settings name, with its template and its edited layer.

    Args:
        settings: The project's settings.
        device: As in `base.pick_device`.
        base: A base that is loaded already; None: load it. The environment's `SCEN_BASE` overrides the name in the
            settings: the base may have moved.

    Raises:
        UsageError: The base cannot be loaded, or its weights are not those that the project was created with.
        DamageFound: The settings do not fit the base.
    """

    def __init__(self, settings: Mapping[str, Any], device: str = "auto", base: Base | None = None) -> None:
        if base is None:
            name = os.environ.get("SCEN_BASE") or settings["model"]
            quantize, device_map = settings.get("quantize"), settings.get("device_map")
            how = (settings["dtype"], device, quantize, device_map, settings.get("gguf_file"))
            base = load_base(name, settings["revision"], *how)
        check_unchanged(base, settings)
        self.base, self.model = base, base.model
        try:
            self.edited = find_layer(self.model, settings["layer"], settings["target_module"], _key_layer(settings))
            self.template = make_template(
                self.base.tokenizer, self.model, settings["template"], settings.get("template_date")
            )
        except UsageError as error:  # they did fit when the project was created
            raise DamageFound(f"the project's settings do not fit its base: {error}", VERIFY_HINT) from error
        if self.edited.ffn_width != settings["ffn_width"]:
            raise DamageFound(
                f"the project's keys have width {settings['ffn_width']}, the base's {self.edited.ffn_width}",
                VERIFY_HINT,
            )

    def encode(self, prompts: Sequence[Prompt]) -> tuple[Tensor, Tensor]:
        """Put prompts into the template. Returns ids and attention mask, (rows, tokens), padded on the left.

        Raises:
            UsageError: There are no prompts, or one has no tokens or leaves no room for an answer in the context.
        """
        if not prompts:
            raise UsageError("there is no prompt")
        return self.pad(self.prompt_ids(prompts))

    def prompt_ids(self, prompts: Sequence[Prompt]) -> list[list[int]]:
        """Token ids of prompts in the template. Raises `UsageError` as `encode` does."""
        rows = [self.template.prompt_ids(prompt) for prompt in prompts]
        for prompt, tokens in zip(prompts, rows, strict=True):
            self.check_fits(str(prompt), tokens, 1)
        return rows

    def pad(self, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Ids and attention mask, (rows, tokens), of token sequences, padded on the left, on the base's device."""
        ids, mask = padded(rows, self.pad_id)
        return ids.to(self.base.device), mask.to(self.base.device)

    def check_trainable(self, record: EditRecord) -> None:
        """Raise `UsageError` for a record that can never be trained: its target has no tokens or would come back as
        another text, or a prompt with the target exceeds the context."""
        target = self.template.target_ids(record.prompt, record.target)
        if not target:
            raise UsageError(f"target {record.target!r} tokenises to nothing")
        if (decoded := self.template.answer(target)) != record.target:
            looks_same = ", with other characters that look the same" if plain(decoded) == plain(record.target) else ""
            raise UsageError(
                f"target {record.target!r} cannot be learned: as tokens of this base it is {decoded!a}{looks_same}",
                hint=f"write {decoded!r}" if looks_same else "choose a target that the base's vocabulary can spell",
            )
        for prompt in (record.prompt, *record.train_rephrases):
            self.check_fits(f"{prompt} {record.target}", self.tokenize_pair(prompt, record.target).input_ids)

    def tokenize_edit(self, record: EditRecord) -> TokenizedEdit:
        """Tokenise a record: its prompt in the template, then its target."""
        return self.tokenize_pair(record.prompt, record.target)

    def tokenize_pair(self, prompt: Prompt, target: str) -> TokenizedEdit:
        """Tokenise a prompt in the template, then a target."""
        ids = self.template.target_ids(str(prompt), target)
        return TokenizedEdit(self.template.prompt_ids(prompt) + ids, len(ids))

    def check_fits(self, prompt: str, tokens: Sequence[int], more: int = 0) -> None:
        """Raise `UsageError` unless the base has all tokens of a prompt, and they and `more` fit its context."""
        shown = prompt if len(prompt) <= 40 else prompt[:40] + "..."
        if not self.has_room(len(tokens) + more) or not tokens:
            raise UsageError(f"{shown!r} has {len(tokens)} tokens; the base's context is {self.context}")
        if max(tokens) >= self.vocabulary:
            token = self.base.tokenizer.convert_ids_to_tokens(max(tokens))
            raise UsageError(
                f"{shown!r} has the token {token!r} ({max(tokens)}); the base has embeddings of 0 to "
                f"{self.vocabulary - 1} only"
            )

    def fits(self, prompt: Prompt) -> bool:
        """Whether a prompt has tokens, all of which the base has, and leaves room for an answer."""
        tokens = self.template.prompt_ids(prompt)
        return bool(tokens) and max(tokens) < self.vocabulary and self.has_room(len(tokens) + 1)

    def has_room(self, tokens: int) -> bool:
        """Whether a sequence of this many tokens fits the base's context."""
        return self.context is None or tokens <= self.context

    @property
    def vocabulary(self) -> int:
        """How many tokens the base can read and write. A tokenizer may have more."""
        ends = (self.model.get_input_embeddings(), self.model.get_output_embeddings())
        return min(int(layer.weight.shape[0]) for layer in ends)

    @property
    def context(self) -> int | None:
        """The longest sequence that the base takes, in tokens, if its config says."""
        return context_length(self.model)

    @property
    def pad_id(self) -> int:
        """The token that pads batches. Pads are always masked."""
        return pad_token_id(self.base, self.template)


def _key_layer(settings: Mapping[str, Any]) -> int | None:
    """The layer in which the recipe reads keys; None if that is the edited layer, or if another method edits."""
    recipe = settings.get("recipe")
    layer = recipe.get("key_layer") if isinstance(recipe, dict) else None
    return layer if isinstance(layer, int) else None  # `stored_recipe` refuses anything else
