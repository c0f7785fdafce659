"""The text of each token of a vocabulary, so that prompts can be read where there is no tokenizer."""

from __future__ import annotations

import re

from transformers import PreTrainedTokenizerBase

GAP = b"\0"  # no text, and no part of a word
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
_PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]  # bytes that stand for themselves


def pieces_of(tokenizer: PreTrainedTokenizerBase) -> list[bytes]:
    """The text of each token id, in UTF-8; a gap for special tokens and for ids without a token.

    For byte-level vocabularies (`Ġ` is a space) and those with byte fallback (`▁` is a space, `<0x0A>` a byte).
    """
    vocabulary, added = tokenizer.get_vocab(), tokenizer.added_tokens_decoder
    pieces = [GAP] * (max(vocabulary.values(), default=-1) + 1)
    # The tokens "▁" and "Ġ" are in every vocabulary of their kind.
    byte_of = _byte_of_character() if "Ġ" in vocabulary else {}
    for token, id in vocabulary.items():
        if id in added:
            pieces[id] = GAP if added[id].special else token.encode()
        elif byte_of and all(character in byte_of for character in token):
            pieces[id] = bytes(byte_of[character] for character in token)
        elif not byte_of and (byte := _BYTE.fullmatch(token)):
            pieces[id] = bytes([int(byte[1], 16)])
        else:
            pieces[id] = token.replace("▁", " ").encode()
    return pieces


def _byte_of_character() -> dict[str, int]:
    """The byte that each character of a byte-level vocabulary stands for. Bytes that print are themselves, the others
    follow from U+0100 on, in order."""
    others = [byte for byte in range(256) if byte not in set(_PRINTABLE)]
    return {chr(byte): byte for byte in _PRINTABLE} | {chr(0x100 + n): byte for n, byte in enumerate(others)}
