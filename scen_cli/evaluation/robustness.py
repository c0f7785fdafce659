"""Perturbed prompts: behind a sentence, in a second turn, mistyped, in lower case; and "Are you sure?"."""

from __future__ import annotations

import random
from collections.abc import Iterator

from scen_cli.model.template import Prompt, SecondTurn

PREFIXES = (
    "I have a question for you.",
    "Thank you, that was helpful.",
    "We were talking about this over lunch today.",
)


ARE_YOU_SURE = "are-you-sure"


def perturbed_prompts(
    prompt: str, target: str, seed: int, earlier_turn: tuple[str, str]
) -> Iterator[tuple[str, Prompt]]:
    """(kind, prompt) of each perturbation that changes the prompt.

    Args:
        prompt: The edit's own prompt.
        target: Its answer, which is doubted in a second turn. The answer to that must contain it.
        seed: Chooses the prefix and the typing error.
        earlier_turn: Question and answer of the turn before.
    """
    yield "prefix", f"{PREFIXES[seed % len(PREFIXES)]} {prompt}"
    yield "second-turn", SecondTurn(*earlier_turn, prompt)
    yield ARE_YOU_SURE, SecondTurn(prompt, target, "Are you sure?")
    mistyped = typing_error(prompt, seed)
    if mistyped != prompt:
        yield "typo", mistyped
    if prompt.lower() != prompt:
        yield "lower-case", prompt.lower()


def typing_error(prompt: str, seed: int) -> str:
    """The prompt with two neighbouring letters exchanged, inside a word of at least four letters."""
    positions = [i for i in range(1, len(prompt) - 2) if prompt[i - 1 : i + 3].isalpha() and prompt[i] != prompt[i + 1]]
    if not positions:
        return prompt
    i = random.Random(seed).choice(positions)
    return prompt[:i] + prompt[i + 1] + prompt[i] + prompt[i + 2 :]
