"""Turns generated tokens into text while they arrive: no incomplete characters, and nothing of a stop string."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase


class IncrementalDetokenizer:
    """The text of one answer during generation."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop_strings: Sequence[str]) -> None:
        self._tokenizer, self._stop_strings = tokenizer, stop_strings
        self._tokens: list[int] = []
        # Tokens from `_context_start` to `_decoded_end` are already text; they are decoded again as context.
        self._context_start, self._decoded_end = 0, 0
        self._pending = ""  # decoded text that may begin a stop string
        self.stopped = False  # a stop string was found

    def add(self, token: int) -> str:
        """Add a token. Returns the text that can be sent now."""
        self._tokens.append(token)
        text = self._new_text()
        if text.endswith("\ufffd"):  # the character is incomplete: later tokens complete it
            return ""
        self._context_start, self._decoded_end = self._decoded_end, len(self._tokens)
        self._pending += text
        found = [start for start in (self._pending.find(stop) for stop in self._stop_strings) if start >= 0]
        self.stopped = bool(found)
        end = min(found) if found else len(self._pending) - self._possible_stop_length()
        text, self._pending = self._pending[:end], self._pending[end:]
        return text

    def flush(self) -> str:
        """Return the text that was held back, after the last token."""
        return "" if self.stopped else self._pending + self._new_text()

    def _new_text(self) -> str:
        """The text that the tokens after `_decoded_end` add.

        The text of a token can depend on the token before it. So the tokens of the previous piece are decoded with
        them, and no earlier ones: the cost does not grow with the answer.
        """
        context = self._decode(self._tokens[self._context_start : self._decoded_end])
        return self._decode(self._tokens[self._context_start :])[len(context) :]

    def _decode(self, tokens: list[int]) -> str:
        return str(self._tokenizer.decode(tokens, skip_special_tokens=True))

    def _possible_stop_length(self) -> int:
        """Number of characters at the end of `_pending` that may begin a stop string."""
        longest = max((len(stop) for stop in self._stop_strings), default=1) - 1
        lengths = range(min(longest, len(self._pending)), 0, -1)
        return next((n for n in lengths if any(stop.startswith(self._pending[-n:]) for stop in self._stop_strings)), 0)
