"""From tokens, as they come, to text that can be sent: no half characters, nothing of a stop string."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase


class Text:
    """The text of an answer under way."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stops: Sequence[str]) -> None:
        self._tokenizer, self._stops = tokenizer, stops
        self._tokens: list[int] = []
        self._context, self._decoded = 0, 0  # tokens before these are behind us; those between are decoded, as context
        self._held = ""  # decoded, but a stop string may begin with it
        self.stopped = False  # one has come

    def add(self, token: int) -> str:
        """What can be sent now that this token has come."""
        self._tokens.append(token)
        text = self._new_text()
        if text.endswith("\ufffd"):  # a character that more tokens complete
            return ""
        self._context, self._decoded = self._decoded, len(self._tokens)
        self._held += text
        found = [place for place in (self._held.find(stop) for stop in self._stops) if place >= 0]
        self.stopped = bool(found)
        return self._send(min(found) if found else len(self._held) - self._may_begin_a_stop())

    def rest(self) -> str:
        """What was kept back, now that nothing more comes."""
        return "" if self.stopped else self._held + self._new_text()

    def _new_text(self) -> str:
        """What the tokens since the last text add to it. (How a token reads can depend on the one before it: so those
        of the last piece are decoded with them, and no more, however long the answer.)"""
        before = self._decode(self._tokens[self._context : self._decoded])
        return self._decode(self._tokens[self._context :])[len(before) :]

    def _decode(self, tokens: list[int]) -> str:
        return str(self._tokenizer.decode(tokens, skip_special_tokens=True))

    def _send(self, count: int) -> str:
        new, self._held = self._held[:count], self._held[count:]
        return new

    def _may_begin_a_stop(self) -> int:
        """Characters at the end of what is held with which a stop string may begin."""
        longest = max((len(stop) for stop in self._stops), default=1) - 1
        counts = range(min(longest, len(self._held)), 0, -1)
        return next((n for n in counts if any(stop.startswith(self._held[-n:]) for stop in self._stops)), 0)
