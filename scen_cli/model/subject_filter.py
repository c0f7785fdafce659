"""The subject filter: an edit with a subject is routed to only if the prompt names that subject.

Keys of two questions about different subjects can be similar, but their words differ. Prompts arrive as token ids, so
the filter knows the text of each token. This file needs torch only; exported checkpoints contain a copy of it.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from scen_cli.data.words import words_of
from scen_cli.model.keys import Span
from scen_cli.model.name_index import NameIndex

BLOCKED = -1.0  # replaces the activation of a blocked neuron


@dataclass(frozen=True)
class Named:
    """A subject that a prompt names.

    Attributes:
        rows: The rows of W_merge that are about it.
        spans: Its tokens, as `KeyConfig.masked_segments_of` takes them.
    """

    rows: list[int]
    spans: list[Span]


class SubjectFilter:
    """Blocks the rows of W_merge whose subject a prompt does not name.

    Args:
        names: For each row, the names of its subject, as `NameIndex` finds them. A row without names is never blocked.
        pieces: The text of each token id, in UTF-8.
    """

    def __init__(self, names: Sequence[Sequence[str]], pieces: Sequence[bytes]) -> None:
        self._pieces = pieces
        rows: dict[tuple[str, ...], list[int]] = {}
        for row, of_row in enumerate(names):
            if of_row:
                rows.setdefault(tuple(of_row), []).append(row)
        self._rows, self._index = list(rows.values()), NameIndex(list(rows))
        self._has_subject = [bool(of_row) for of_row in names]
        # `_has_subject` as a tensor, made on first use: a model may be built on the meta device.
        self._mask: Tensor | None = None

    @property
    def all_have_subjects(self) -> bool:
        """Whether every row has a subject."""
        return all(self._has_subject)

    def named(self, tokens: Sequence[int]) -> list[Named]:
        """The subjects that a prompt of these tokens names."""
        pieces = [self._pieces[token] if token < len(self._pieces) else b"" for token in tokens]
        text = b"".join(pieces).decode("utf-8", "surrogateescape")  # keeps the bytes of half a character
        words = words_of(text)
        found = self._index.find([word.text for word in words])
        if not found:
            return []
        byte_ends = list(accumulate(len(c.encode("utf-8", "surrogateescape")) for c in text))
        token_ends = list(accumulate(map(len, pieces)))

        def span(first: int, last: int, masked: bool) -> Span:
            start = words[first].start
            begin = byte_ends[start - 1] if start else 0
            end = byte_ends[words[last - 1].end - 1]
            token = bisect_right(token_ends, begin)
            if token and pieces[token - 1] == b" ":  # a space that is a token of its own belongs to the word
                token -= 1
            return token, bisect_right(token_ends, end - 1) + 1, masked

        return [
            Named(
                self._rows[name.name],
                # Of a name in parts, the first part stands for the whole.
                [span(first, last, not name.near or not part) for part, (first, last) in enumerate(name.places)],
            )
            for name in found
        ]

    def with_subject(self, device: torch.device) -> Tensor:
        """Mask (t,) of the rows that have a subject."""
        if self._mask is None:
            self._mask = torch.tensor(self._has_subject)
        return self._mask.to(device)

    def blocked(self, prompts: Sequence[Sequence[int]], device: torch.device) -> Tensor:
        """Mask (prompts, t) of the rows that each prompt must not route to."""
        blocked = self.with_subject(torch.device("cpu")).repeat(len(prompts), 1)
        for prompt, tokens in enumerate(prompts):
            blocked[prompt, [row for subject in self.named(tokens) for row in subject.rows]] = False
        return blocked.to(device)
