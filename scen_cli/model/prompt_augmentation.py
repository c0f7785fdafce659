"""Other ways to put a prompt, for experts to learn from: what real requests have around a question."""

from __future__ import annotations

from scen_cli.model.template import Prompt, SecondTurn

# None of these sentences is among those that robustness is scored with (`evaluation/robustness.py`).
OPENINGS = ("Please answer the following.", "Let me ask something else now.", "Someone wants to know this.")
EARLIER = (("What can you do?", "I can answer questions."), ("Hello", "Hello! How can I help?"))


def augmented_prompts(prompt: str, count: int) -> list[Prompt]:
    """The first `count` of: behind a sentence, in a second turn, in small letters, behind two sentences. Which
    sentences follows from the prompt alone."""
    number = sum(map(ord, prompt))
    first, second = OPENINGS[number % 3], OPENINGS[(number + 1) % 3]
    ways: list[Prompt] = [
        f"{first} {prompt}",
        SecondTurn(*EARLIER[number % 2], prompt),
        prompt.lower(),
        f"{first} {second} {prompt}",
    ]
    return ways[:count]
