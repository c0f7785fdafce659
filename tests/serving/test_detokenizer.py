"""Text that is sent in pieces, compared with the whole text."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from scen_cli.serving.answer_source import IncrementalDetokenizer


class ByteTokenizer:
    """A tokenizer whose tokens are bytes: characters outside ASCII take several."""

    def decode(self, tokens, skip_special_tokens):
        return bytes(tokens).decode("utf-8", errors="replace")


def detokenize(text: str, stop_strings: list[str]) -> list[str]:
    """The pieces that are sent when `text` arrives byte by byte."""
    detokenizer = IncrementalDetokenizer(ByteTokenizer(), stop_strings)
    pieces = []
    for token in text.encode():
        pieces.append(detokenizer.add(token))
        if detokenizer.stopped:
            return pieces
    return [*pieces, detokenizer.flush()]


@given(st.text(alphabet="abé漢😀", max_size=20), st.lists(st.text(alphabet="abé", min_size=1, max_size=3), max_size=3))
def test_pieces_are_the_text_before_the_first_stop_string(text, stop_strings):
    pieces = detokenize(text, stop_strings)
    sent = "".join(pieces)
    # The stop string that is complete first ends the text; another may begin earlier and be complete later.
    first = min((text.find(stop) + len(stop) for stop in stop_strings if stop in text), default=None)
    if first is None:
        assert sent == text
    else:
        started = [text.find(stop) for stop in stop_strings if stop in text[:first]]
        assert sent == text[: min(started)]
        assert len(sent) <= max(text.find(stop) for stop in stop_strings if stop in text)
    assert "\ufffd" not in sent


def test_text_that_may_begin_a_stop_string_is_held_back():
    detokenizer = IncrementalDetokenizer(ByteTokenizer(), ["END"])
    assert [detokenizer.add(token) for token in b"aEbEN"] == ["a", "", "Eb", "", ""]
    assert detokenizer.flush() == "EN"
