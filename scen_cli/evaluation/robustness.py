"""The same question otherwise put: behind another sentence, in a second turn, mistyped, in small letters."""

from __future__ import annotations

import random
from collections.abc import Iterator

from scen_cli.model.template import Prompt, SecondTurn

PREFIXES = (
    "I have a question for you.",
    "Thank you, that was helpful.",
    "We were talking about this over lunch today.",
)


def variants(prompt: str, number: int, earlier: tuple[str, str]) -> Iterator[tuple[str, Prompt]]:
    """(kind, prompt) of each variant. `number` picks the sentence and seeds the typing error; `earlier` is
    a question and its answer, for the turn before. A variant that would be the prompt itself is left out."""
    yield "prefix", f"{PREFIXES[number % len(PREFIXES)]} {prompt}"
    yield "second-turn", SecondTurn(*earlier, prompt)
    mistyped = typing_error(prompt, number)
    if mistyped != prompt:
        yield "typo", mistyped
    if prompt.lower() != prompt:
        yield "lower-case", prompt.lower()


def typing_error(prompt: str, seed: int) -> str:
    """The prompt with two neighbouring letters exchanged, inside one word of four letters or more."""
    places = [
        place
        for place in range(1, len(prompt) - 2)
        if prompt[place - 1 : place + 3].isalpha() and prompt[place] != prompt[place + 1]
    ]
    if not places:
        return prompt
    place = random.Random(seed).choice(places)
    return prompt[:place] + prompt[place + 1] + prompt[place] + prompt[place + 2 :]
