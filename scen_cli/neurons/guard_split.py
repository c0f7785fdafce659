"""`GuardSplit`: some of the guard prompts, ready to be met by neurons."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from scen_cli.data.lexical_overlap import Topics, plain
from scen_cli.model.routing import largest
from scen_cli.model.subject_filter import BLOCKED
from scen_cli.project.guard import SELF_WRITTEN, Guard

NEAR = 0.7  # activation from which on prompts about the same are one question (benchmarks/LOG.md)

MatchKey = Sequence[tuple[str, str | None]]  # (prompt, subject) of each edit that an expert serves


class GuardSplit:
    """The prompts of one split of the guard (none of no guard), their prepared keys, and what they are about."""

    def __init__(
        self, guard: Guard | None, name: str, width: int, subject_filter: bool, prepare: Callable[[Tensor], Tensor]
    ) -> None:
        self._subject_filter = subject_filter
        self.prompts: list[str] = []
        self.keys, self._rows = torch.empty(0, width), torch.empty(0, dtype=torch.long)
        if guard:
            self.prompts, keys, rows = guard.split(name)
            self.keys, self._rows = prepare(torch.from_numpy(keys)), torch.from_numpy(rows)
        self._keys_of: Sequence[Tensor] | None = None  # places of each prompt's keys, once they are asked for
        self.topics = Topics(self.prompts)
        self._places: dict[str, list[int]] = {}  # of prompts of the same words
        for place, prompt in enumerate(self.prompts):
            self._places.setdefault(plain(prompt), []).append(place)
        self._together = "\0".join(self.prompts)  # most subjects occur in none: one search tells
        self._given = guard is not None and guard.source(name) != SELF_WRITTEN

    def keys_of(self, prompt: int) -> Tensor:
        """The prepared keys (n, h) of one of the prompts and of its splits."""
        if self._keys_of is None:
            order = self._rows.argsort(stable=True)
            self._keys_of = order.split(self._rows.bincount(minlength=len(self)).tolist())
        return self.keys[self._keys_of[prompt]]

    def __len__(self) -> int:
        return len(self.prompts)

    def by_prompt(self, on_keys: Tensor, topics: MatchKey) -> Tensor:
        """A neuron's activation on each prompt (g,), its largest split's, of its activations on the keys (n,). It is
        -inf where the prompt is the edit's own: the same words or, if nobody gave the guard, a question about
        the same and near it: what a base writes may well be what its user corrects. With a second look, prompts
        that do not name the edit's subject are blocked."""
        if not self.prompts:
            return torch.empty(0)
        found = largest(on_keys[:, None], self._rows, len(self.prompts))[:, 0]
        if self._subject_filter and len(topics) == 1 and (subject := topics[0][1]):
            found = found.masked_fill(~self._naming(subject), BLOCKED)
        near = found >= NEAR
        for prompt, subject in topics:
            own = torch.zeros(len(self.prompts), dtype=torch.bool)
            own[self._places.get(plain(prompt), [])] = True
            if not self._given and bool(near.any()):
                own |= near & torch.tensor(self.topics.about(prompt, subject))
            found = found.masked_fill(own, -torch.inf)
        return found

    def _naming(self, subject: str) -> Tensor:
        """Which prompts (g,) name a subject."""
        if not _names(self._together, subject):
            return torch.zeros(len(self.prompts), dtype=torch.bool)
        return torch.tensor([_names(text, subject) for text in self.prompts])


class _Edit(Protocol):
    """An edit, or a record of one that is to be made."""

    @property
    def prompt(self) -> str: ...

    @property
    def subject(self) -> str | None: ...

    @property
    def train_rephrases(self) -> tuple[str, ...]: ...


def match_key(edit: _Edit) -> tuple[str, str | None]:
    """What an edit is about: its subject counts if its prompt and all rephrases it learned name it as routing would
    look for it (`Template.subject_forms`): as it is written, or in small letters."""
    texts = (edit.prompt, *edit.train_rephrases)
    subject = edit.subject
    return edit.prompt, subject if subject and all(_names(text, subject) for text in texts) else None


def _names(text: str, subject: str) -> bool:
    return subject in text or subject.lower() in text
