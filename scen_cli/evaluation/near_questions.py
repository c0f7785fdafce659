"""Other questions about an edit's subject: those of other edits, and the edit's own, negated."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence

from scen_cli.data.lexical_overlap import content_words
from scen_cli.evaluation.samples import Scored

AUXILIARY = r"\b(?:is|are|was|were|do|does|did|has|have|had|can|could|will|would)\b"
TRIES = 20  # other edits that are tried for each edit


def swapped_questions(scored: Sequence[Scored]) -> Iterator[tuple[Scored, str]]:
    """(edit, question): the question of another edit, with this edit's subject instead of its own.

    Each edit with a subject in its prompt gets one question at most. The two questions have no word in common but
    function words: otherwise they could ask the same.
    """
    named = [item for item in scored if item.record.subject and item.record.subject in item.record.prompt]
    for item in named:
        words = _words(item)
        rng = random.Random(item.edit.id)
        for other in rng.sample(named, min(TRIES, len(named))):
            if other.record.subject != item.record.subject and not words & _words(other):
                yield item, other.record.prompt.replace(str(other.record.subject), str(item.record.subject))
                break


def _words(item: Scored) -> set[str]:
    """The words of an edit's question without its subject and without function words."""
    question = item.record.prompt.replace(str(item.record.subject), " ")
    return content_words(question)


def negated_question(prompt: str, subject: str | None) -> str | None:
    """The question with `not` in it: "Where was Ada not born?"; None for a prompt without an auxiliary verb.

    `not` stands behind the subject if that follows the verb, else behind the verb.
    """
    found = re.search(AUXILIARY, prompt, re.IGNORECASE)
    if not found:
        return None
    end = found.end()
    behind = re.match(rf"\s+(the\s+)?{re.escape(subject)}\b", prompt[end:], re.IGNORECASE) if subject else None
    end += behind.end() if behind else 0
    return f"{prompt[:end]} not{prompt[end:]}"
