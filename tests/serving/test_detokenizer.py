"""Text as it is sent piece by piece, against the whole."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from scen_cli.serving.text import Text


class Bytes:
    """A tokenizer whose tokens are bytes: characters beyond ASCII take several."""

    def decode(self, tokens, skip_special_tokens):
        return bytes(tokens).decode("utf-8", errors="replace")


def sent(text: str, stops: list[str]) -> tuple[str, list[str]]:
    """(all that was sent, piece by piece) of a text that comes byte by byte."""
    out = Text(Bytes(), stops)
    pieces = []
    for token in text.encode():
        pieces.append(out.add(token))
        if out.stopped:
            return "".join(pieces), pieces
    return "".join([*pieces, out.rest()]), pieces


@given(st.text(alphabet="abé漢😀", max_size=20), st.lists(st.text(alphabet="abé", min_size=1, max_size=3), max_size=3))
def test_what_is_sent_is_the_text_up_to_its_first_stop(text, stops):
    ends = [text.find(stop) for stop in stops if stop in text]
    whole, pieces = sent(text, stops)
    # The stop that is complete first ends it; another may begin earlier and be complete later.
    first = min((text.find(stop) + len(stop) for stop in stops if stop in text), default=None)
    if first is None:
        assert whole == text
    else:
        begun = [text.find(stop) for stop in stops if stop in text[:first]]
        assert whole == text[: min(begun)]
        assert len(whole) <= max(ends)
    assert "\ufffd" not in "".join(pieces)


def test_a_piece_that_may_begin_a_stop_waits_until_it_does_not():
    out = Text(Bytes(), ["END"])
    assert [out.add(token) for token in b"aEbEN"] == ["a", "", "Eb", "", ""]
    assert out.rest() == "EN"
