"""Methods that put an edit in front of a prompt, as an earlier turn: which one, and who answers, is theirs to say."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from scen_cli.baselines.method import Method, MethodContext, Settings
from scen_cli.data.records import EditRecord
from scen_cli.errors import UsageError
from scen_cli.model.ffn import find_layer
from scen_cli.model.keys import padded, positions_of, read_keys, real_tokens
from scen_cli.model.template import SecondTurn


class RetrievalMethod(Method):
    """A cache of `edits`, and a vector (n, width) for each, by which they are found."""

    def __init__(self, given: MethodContext, settings: Settings, width: int | None = None) -> None:
        super().__init__(given, settings)
        self.layer = find_layer(self.model, self.given.layer)
        self.edits: list[tuple[str, str]] = []
        self.vectors = torch.empty(0, width or self.layer.ffn_width, device=self.base.device)

    @abstractmethod
    def embedded(self, states: Tensor) -> Tensor:
        """Vectors (n, width) of what `states` reads of prompts (n, h)."""

    @abstractmethod
    def found(self, vectors: Tensor) -> list[int | None]:
        """The edit that is to stand in front of prompts of these vectors (n, width): its place, or None."""

    @property
    def reader(self) -> PreTrainedModel:
        """The model that answers a prompt with an edit in front of it: the base, unless a method has its own."""
        return self.model

    def fit(self, edits: Sequence[EditRecord]) -> None:
        for edit in edits:
            if not self.template.target_ids(edit.prompt, edit.target):
                raise UsageError(f"target {edit.target!r} tokenises to nothing")
        now = {edit.prompt: edit.target for edit in edits}  # a prompt has one edit: the newest
        stay = [row for row, (prompt, _target) in enumerate(self.edits) if prompt not in now]
        self.edits = [self.edits[row] for row in stay] + list(now.items())
        self.vectors = torch.cat([self.vectors[stay], self.embedded(self.states(list(now)))])

    def generate(self, ids: Tensor, mask: Tensor, **options: Any) -> Tensor:
        put = self.in_front(ids, mask)
        if not put:
            return super().generate(ids, mask, **options)
        own, own_mask = self._encoded([front + tokens[skip:] for front, skip, tokens in put.values()])
        out: Tensor = self.reader.generate(input_ids=own, attention_mask=own_mask, **options)
        said = dict(zip(put, out[:, own.shape[1] :].split(len(out) // len(own)), strict=True))
        if len(put) < len(ids):  # the base is asked for all rows: what it says of one hangs on the batch, to the bit
            out = super().generate(ids, mask, **options)[:, ids.shape[1] :]
            said = dict(enumerate(out.split(len(out) // len(ids)))) | said
        rows = [torch.cat([ids[[row] * len(said[row])], said[row]], dim=1) for row in range(len(ids))]
        width, pad = max(one.shape[1] for one in rows), options.get("pad_token_id", self.template.end_id)
        return torch.cat([nn.functional.pad(one, (0, width - one.shape[1]), value=pad) for one in rows])

    @torch.no_grad()
    def logits(self, prompts: tuple[Tensor, Tensor], texts: tuple[Tensor, Tensor]) -> Tensor:
        logits = super().logits(prompts, texts)
        put = self.in_front(*prompts)
        if not put:
            return logits
        tokens = real_tokens(*texts)
        ids, mask = self._encoded([front + tokens[row][skip:] for row, (front, skip, _tokens) in put.items()])
        options = {"input_ids": ids, "attention_mask": mask, "position_ids": positions_of(mask), "use_cache": False}
        for row, said in zip(put, self.reader(**options).logits, strict=True):
            places = texts[1][row].nonzero()[put[row][1] :, 0]
            logits[row, places] = said[-len(places) :]
        return logits

    @torch.no_grad()
    def in_front(self, ids: Tensor, mask: Tensor) -> dict[int, tuple[list[int], int, list[int]]]:
        """For each of the rows that an edit is put in front of: the tokens to put there, how many of its own they stand
        in for, and its own. (Where the context has no room for both, none is.)"""
        if not self.attached or not self.edits:
            return {}
        places = self.found(self.embedded(read_keys(self.model, self.layer.down_proj, ids, mask, "mean")))
        room = getattr(self.model.config, "max_position_embeddings", None) or 10**9
        rows = {}
        for row, (place, tokens) in enumerate(zip(places, real_tokens(ids, mask), strict=True)):
            if place is not None:
                front, skip = self._front(*self.edits[place])
                if len(front) + len(tokens) - skip < room:
                    rows[row] = front, skip, tokens
        return rows

    def _front(self, question: str, answer: str) -> tuple[list[int], int]:
        """The tokens of an earlier turn, and how many tokens at the beginning of a prompt they stand in for: all that
        differs when a prompt is asked alone and when it is asked after that turn."""
        after, alone = self.template.prompt_ids(SecondTurn(question, answer, question)), self.prompt_ids(question)
        shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(after[::-1], alone[::-1], strict=False)))
        return after[: len(after) - shared], len(alone) - shared

    def _encoded(self, rows: list[list[int]]) -> tuple[Tensor, Tensor]:
        ids, mask = padded(rows, self.template.end_id)
        return ids.to(self.base.device), mask.to(self.base.device)

    def states(self, prompts: Sequence[str]) -> Tensor:
        """What prompts are known by (n, h), float32: the mean over their tokens of what enters the layer's `down_proj`
        in the base."""

        def read(ids: Tensor, mask: Tensor) -> Tensor:
            return read_keys(self.model, self.layer.down_proj, ids, mask, "mean")

        return self.read(prompts, self.layer.ffn_width, read)

    def why(self, prompt: str) -> str:
        [place] = self.found(self.embedded(self.states([prompt]))) if self.edits else [None]
        return "no edit is near enough" if place is None else "in front of it: " + " ".join(self.edits[place])

    def state(self) -> dict[str, Tensor]:
        lines = "\0".join(text for edit in self.edits for text in edit).encode()  # no record holds a NUL
        return {"vectors": self.vectors, "edits": torch.tensor(list(lines), dtype=torch.uint8)}

    def load(self, state: dict[str, Tensor]) -> None:
        texts = bytes(state["edits"].tolist()).decode().split("\0")
        self.edits = list(zip(texts[::2], texts[1::2], strict=True)) if len(state["edits"]) else []
        self.vectors = state["vectors"].to(self.base.device)
