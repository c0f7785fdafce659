"""From tokens, as they come, to text that can be sent: no half characters, nothing of a stop string."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase


class Text:
    """The text of an answer under way."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stops: Sequence[str]) -> None:
        self._tokenizer, self._stops = tokenizer, stops
        self._tokens: list[int] = []
        self._sent = ""
        self.stopped = False  # a stop string has come

    def add(self, token: int) -> str:
        """What can be sent now that this token has come."""
        self._tokens.append(token)
        text = str(self._tokenizer.decode(self._tokens, skip_special_tokens=True))
        found = [place for place in (text.find(stop) for stop in self._stops) if place >= 0]
        if found:
            self.stopped = True
            return self._send(text[: min(found)])
        if text.endswith("\ufffd"):  # a character that more tokens complete
            return ""
        return self._send(text[: len(text) - self._may_begin_a_stop(text)])

    def rest(self) -> str:
        """What was kept back, now that nothing more comes."""
        return "" if self.stopped else self._send(str(self._tokenizer.decode(self._tokens, skip_special_tokens=True)))

    def _send(self, text: str) -> str:
        new, self._sent = text[len(self._sent) :], max(text, self._sent, key=len)
        return new

    def _may_begin_a_stop(self, text: str) -> int:
        """Characters at the text's end with which a stop string may begin."""
        longest = max((len(stop) for stop in self._stops), default=1) - 1
        counts = range(min(longest, len(text)), 0, -1)
        return next((n for n in counts if any(stop.startswith(text[-n:]) for stop in self._stops)), 0)
