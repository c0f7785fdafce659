"""`RetrievalMethod`: methods that prepend the retrieved edit to a prompt, as an earlier turn. In-context is one."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn
from transformers import PreTrainedModel

from scen_cli.baselines.context import MethodContext, run_texts
from scen_cli.baselines.method import Method, Settings
from scen_cli.data.records import EditRecord
from scen_cli.errors import UsageError
from scen_cli.model.generation import context_length
from scen_cli.model.keys import read_keys, real_tokens
from scen_cli.model.template import SecondTurn


@dataclass(frozen=True)
class Prepended:
    """A prompt's `tokens`, and the earlier turn (`turn`) that replaces the first `skipped` of them."""

    turn: list[int]
    skipped: int
    tokens: list[int]

    def before(self, text: list[int]) -> list[int]:
        """The earlier turn, then a text that begins with the prompt."""
        return self.turn + text[self.skipped :]


class RetrievalMethod(Method):
    """A cache of `edits`, (prompt, target), with the vectors (n, width) that retrieve them. An edit is prepended to a
    prompt if its score is at least `threshold`."""

    def __init__(self, context: MethodContext, settings: Settings, threshold: float, width: int | None = None) -> None:
        super().__init__(context, settings)
        self.threshold = threshold
        [self.layer] = self.context.layers(1)
        self.edits: list[tuple[str, str]] = []
        self.vectors = torch.empty(0, width or self.layer.ffn_width, device=self.base.device)

    @abstractmethod
    def embed(self, keys: Tensor) -> Tensor:
        """Vectors (n, width) of prompts from their mean keys (n, h)."""

    @abstractmethod
    def score(self, vectors: Tensor) -> Tensor:
        """Scores (rows, n) of the edits for prompts with these vectors (rows, width)."""

    @property
    def reader(self) -> PreTrainedModel:
        """The model that answers a prompt with a prepended edit."""
        return self.model

    def fit(self, edits: Sequence[EditRecord]) -> None:
        for edit in edits:
            if not self.template.target_ids(edit.prompt, edit.target):
                raise UsageError(f"target {edit.target!r} has no tokens")
        newest = {edit.prompt: edit.target for edit in edits}  # a prompt has one edit
        stay = [index for index, (prompt, _target) in enumerate(self.edits) if prompt not in newest]
        self.edits = [self.edits[index] for index in stay] + list(newest.items())
        self.vectors = torch.cat([self.vectors[stay], self.vectors_of(list(newest))])

    def find(self, vectors: Tensor) -> list[int | None]:
        """The index of the edit to prepend to each prompt with these vectors (rows, width), or None."""
        scores, best = self.score(vectors).max(dim=1)
        pairs = zip(best.tolist(), scores.tolist(), strict=True)
        return [index if score >= self.threshold else None for index, score in pairs]

    def vectors_of(self, prompts: Sequence[str]) -> Tensor:
        return self.embed(self.mean_keys(self.layer, prompts))

    def generate(self, ids: Tensor, mask: Tensor, **options: Any) -> Tensor:
        prepended = self.prepended(ids, mask)
        if not prepended:
            return super().generate(ids, mask, **options)
        longer, longer_mask = self.pad_left([entry.before(entry.tokens) for entry in prepended.values()])
        out: Tensor = self.reader.generate(input_ids=longer, attention_mask=longer_mask, **options)
        answers = dict(zip(prepended, out[:, longer.shape[1] :].split(len(out) // len(longer)), strict=True))
        if len(prepended) < len(ids):  # the base answers all rows: to the bit, a row's answer depends on its batch
            out = super().generate(ids, mask, **options)[:, ids.shape[1] :]
            answers = dict(enumerate(out.split(len(out) // len(ids)))) | answers
        rows = [torch.cat([ids[[row] * len(answers[row])], answers[row]], dim=1) for row in range(len(ids))]
        width, pad = max(row.shape[1] for row in rows), options.get("pad_token_id", self.template.end_id)
        return torch.cat([nn.functional.pad(row, (0, width - row.shape[1]), value=pad) for row in rows])

    @torch.no_grad()
    def logits(self, prompts: tuple[Tensor, Tensor], texts: tuple[Tensor, Tensor]) -> Tensor:
        logits = super().logits(prompts, texts)
        prepended = self.prepended(*prompts)
        if not prepended:
            return logits
        tokens = real_tokens(*texts)
        longer = self.pad_left([entry.before(tokens[row]) for row, entry in prepended.items()])
        for (row, entry), own in zip(prepended.items(), run_texts(self.reader, *longer), strict=True):
            positions = texts[1][row].nonzero()[entry.skipped :, 0]
            logits[row, positions] = own[-len(positions) :]
        return logits

    @torch.no_grad()
    def prepended(self, ids: Tensor, mask: Tensor) -> dict[int, Prepended]:
        """By row, the prompts that get an edit. A prompt gets none if the context has no room for both."""
        if not self.attached or not self.edits:
            return {}
        found = self.find(self.embed(read_keys(self.model, self.layer.down_proj, ids, mask, "mean")))
        context = context_length(self.model)
        rows = {}
        for row, (index, tokens) in enumerate(zip(found, real_tokens(ids, mask), strict=True)):
            if index is not None:
                entry = Prepended(*self._earlier_turn(*self.edits[index]), tokens)
                if not context or len(entry.before(tokens)) < context:
                    rows[row] = entry
        return rows

    def _earlier_turn(self, question: str, answer: str) -> tuple[list[int], int]:
        """The tokens of an earlier turn, and how many tokens at the beginning of a prompt they replace: all that
        differ between a prompt asked alone and the same prompt asked after that turn."""
        after, alone = self.template.prompt_ids(SecondTurn(question, answer, question)), self.prompt_ids(question)
        shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(after[::-1], alone[::-1], strict=False)))
        return after[: len(after) - shared], len(alone) - shared

    def why(self, prompt: str) -> str:
        [index] = self.find(self.vectors_of([prompt])) if self.edits else [None]
        return "no edit is near enough" if index is None else "prepended edit: " + " ".join(self.edits[index])

    def state(self) -> dict[str, Tensor]:
        lines = "\0".join(text for edit in self.edits for text in edit).encode()  # no record contains a NUL
        return {"vectors": self.vectors, "edits": torch.tensor(list(lines), dtype=torch.uint8)}

    def load(self, state: dict[str, Tensor]) -> None:
        texts = bytes(state["edits"].tolist()).decode().split("\0")
        edits = list(zip(texts[::2], texts[1::2], strict=True)) if len(state["edits"]) else []
        [self.vectors] = self.loaded(state, {"vectors": (len(edits), self.vectors.shape[1])})
        self.edits = edits


class InContextSettings(Settings):
    """One edit before a prompt, if it is near enough."""

    nearness: float = Field(0.5, ge=-1, le=1, description="least cosine at which an edit is prepended")


class InContext(RetrievalMethod):
    """`mean` (h,) is the mean of the unedited prompts' keys."""

    name = "in-context"
    settings: InContextSettings

    def __init__(self, context: MethodContext, settings: InContextSettings) -> None:
        super().__init__(context, settings, settings.nearness)
        self.mean = torch.zeros(self.layer.ffn_width, device=self.base.device)

    def prepare(self) -> None:
        if self.context.prompts:
            self.mean = self.mean_keys(self.layer, self.context.prompts).mean(dim=0)

    def embed(self, keys: Tensor) -> Tensor:
        return nn.functional.normalize(keys - self.mean, dim=1)

    def score(self, vectors: Tensor) -> Tensor:
        return vectors @ self.vectors.T

    def state(self) -> dict[str, Tensor]:
        return {**super().state(), "mean": self.mean}

    def load(self, state: dict[str, Tensor]) -> None:
        super().load(state)
        [self.mean] = self.loaded(state, {"mean": self.mean.shape})
