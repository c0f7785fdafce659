"""The prompts that an expert learns its target from: the edit's own, its training rephrases, and prompt augmentations.

Augmentations put around a question what real requests put around it, so that the expert answers in that context too.
"""

from __future__ import annotations

from scen_cli.data.records import EditRecord
from scen_cli.model.loaded_base import LoadedBase
from scen_cli.model.template import Prompt, SecondTurn

# `evaluation/robustness.py` scores with other sentences than these.
OPENINGS = ("Please answer the following.", "Let me ask something else now.", "Someone wants to know this.")
FIRST_TURNS = (("What can you do?", "I can answer questions."), ("Hello", "Hello! How can I help?"))


def further_training_prompts(loaded: LoadedBase, record: EditRecord, augmentations: int) -> list[Prompt]:
    """Training rephrases and augmentations of a record, without those that exceed the base's context."""
    prompts = [*record.train_rephrases, *augmented_prompts(record.prompt, augmentations)]
    return [prompt for prompt in prompts if loaded.has_room(len(loaded.tokenize_pair(prompt, record.target).input_ids))]


def augmented_prompts(prompt: str, count: int) -> list[Prompt]:
    """The first `count` of four augmentations: after a sentence, in a second turn, in lower case, after two sentences.
    The choice of sentences depends on the prompt only."""
    seed = sum(map(ord, prompt))
    first, second = OPENINGS[seed % 3], OPENINGS[(seed + 1) % 3]
    augmented: list[Prompt] = [
        f"{first} {prompt}",
        SecondTurn(*FIRST_TURNS[seed % 2], prompt),
        prompt.lower(),
        f"{first} {second} {prompt}",
    ]
    return augmented[:count]
