"""Scores of a method after its last edit, by generated answers or by perplexities, the same for every method; and the
splits of a suite without a shared edit: to score, to tune settings on, and to train methods on.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import exp, log
from typing import Any

import torch
from torch import nn

from scen_cli.baselines.context import MethodContext, answer, batched, padded_right
from scen_cli.baselines.method import Method
from scen_cli.data.records import EditRecord
from scen_cli.data.suites import Suite
from scen_cli.errors import UsageError
from scen_cli.evaluation.hallucination import Passage, whole_text, with_continuation
from scen_cli.evaluation.metrics import Mean, Measure, Share
from scen_cli.evaluation.samples import LOCALITY_PROMPTS, REPHRASES
from scen_cli.model.generation import MAX_NEW_TOKENS, context_length

TRAINING = 400  # most edits to train on
TUNING = 50  # most edits to tune on
TUNING_LOCALITY = 100  # most locality prompts to tune on, but at most a quarter of all


@dataclass(frozen=True)
class Splits:
    """Edits and locality prompts to score (`test`) and to tune on (`tuning`), and edits to train on."""

    test: Sequence[EditRecord]
    test_locality: Sequence[str]
    tuning: Sequence[EditRecord]
    tuning_locality: Sequence[str]
    training: Sequence[EditRecord]


def split_suite(suite: Suite, edits: int, unedited: Collection[str], fits: Callable[[EditRecord], bool]) -> Splits:
    """Split a suite. Of edits with the same prompt the first counts.

    Args:
        suite: Its first edits are scored; at most half of the others are tuned on, the rest is for training.
        edits: How many edits to score.
        unedited: Prompts that no edit claims. They are no locality prompts, and edits with one of them are left out.
        fits: Whether the base can take an edit; others are left out.

    Raises:
        UsageError: No edit is left to tune on.
    """
    known: dict[str, EditRecord] = {}
    for record in suite.edits:
        if fits(record) and not _prompts([record]) & set(unedited):
            known.setdefault(record.prompt, record)
    records = list(known.values())
    test = records[:edits]
    scored = _prompts(test)
    others = [record for record in records[edits:] if not _prompts([record]) & scored]
    tuned = min(TUNING, len(test), len(others) // 2)
    if not tuned:
        raise UsageError(
            f"suite `{suite.name}` has {len(records)} edits: none is left to tune on besides the {len(test)} scored",
            hint="fewer `--edits`, or more data",
        )
    claimed = _prompts(records) | set(unedited)
    locality = [prompt for prompt in dict.fromkeys(suite.locality) if prompt not in claimed]
    scored_locality = len(locality) - min(TUNING_LOCALITY, len(locality) // 4)
    return Splits(
        test=test,
        test_locality=locality[:scored_locality][:LOCALITY_PROMPTS],
        tuning=others[:tuned],
        tuning_locality=locality[scored_locality:],
        training=others[tuned : tuned + TRAINING],
    )


def _prompts(records: Iterable[EditRecord]) -> set[str]:
    """All prompts and rephrases of records."""
    return {text for record in records for text in (record.prompt, *record.rephrases)}


TEXTS_WITH_LOGITS = 16  # texts whose logits are in memory at once
HIGHEST_LOSS = 700.0  # its exponential is still finite


@dataclass
class GenerationScoring:
    """Reliability, Generality and Locality by exact match of generated answers (the paper's equations 1 to 3), and
    token accuracy with teacher forcing.

    Attributes:
        context: The context of all methods.
        edits: The edits to score.
        locality: Prompts that no edit claims, with the base's answers.
        options: Options of `generate`.
    """

    context: MethodContext
    edits: Sequence[EditRecord]
    locality: Sequence[tuple[str, str]]
    options: dict[str, Any]

    def inputs(self) -> list[Any]:
        """Everything that is scored, as plain data: the result depends on it."""
        return [[edit.as_json() for edit in self.edits], list(self.locality), self.options]

    def score(self, method: Method) -> dict[str, Measure]:
        rephrases = [(text, edit.target) for edit in self.edits for text in edit.rephrases[:REPHRASES]]
        return {
            "reliability": self.reliability(method, self.edits),
            "generality": self._share(method, rephrases),
            "locality": self._share(method, self.locality),
            "token-accuracy": self._token_accuracy(method),
        }

    @cached_property
    def max_new_tokens(self) -> int:
        """The tokens of the longest target, or the usual limit if that is higher."""
        template = self.context.template
        return max([MAX_NEW_TOKENS, *(len(template.target_ids(edit.prompt, edit.target)) for edit in self.edits)])

    def reliability(self, method: Method, edits: Sequence[EditRecord]) -> Share:
        return self._share(method, [(edit.prompt, edit.target) for edit in edits])

    def average(self, figures: dict[str, Measure]) -> float:
        """The paper's Avg, which tuning maximises: the mean of the three figures that have prompts."""
        values = [figures[name].value for name in ("reliability", "generality", "locality")]
        known = [value for value in values if value is not None]
        return sum(known) / max(len(known), 1)

    def _share(self, method: Method, pairs: Sequence[tuple[str, str]]) -> Share:
        options = {"max_new_tokens": self.max_new_tokens, **self.options}
        answers = answer(method.base, method.template, [prompt for prompt, _ in pairs], method, **options)
        return Share.of([text == target for text, (_, target) in zip(answers, pairs, strict=True)])

    @torch.no_grad()
    def _token_accuracy(self, method: Method) -> Share:
        right: list[bool] = []
        for batch in batched(self.edits, TEXTS_WITH_LOGITS):
            examples = method.examples(batch)
            likeliest = method.logits(examples.prompts, (examples.ids, examples.mask)).argmax(dim=-1)
            right += (likeliest == examples.labels)[examples.scored].tolist()
        return Share.of(right)


@dataclass(frozen=True)
class PerplexityScoring:
    """Mean perplexities of WikiBio-E (edited), WikiBio-A (accurate) and OpenWebText: the Hallucination suite."""

    context: MethodContext
    edits: Sequence[EditRecord]
    accurate: Sequence[EditRecord]
    openwebtext: Sequence[str]

    def inputs(self) -> list[Any]:
        return [[edit.as_json() for edit in (*self.edits, *self.accurate)], list(self.openwebtext)]

    def score(self, method: Method) -> dict[str, Measure]:
        template, context = self.context.template, context_length(self.context.base.model)
        groups = {
            "wikibio-e": [with_continuation(template, context, edit) for edit in self.edits],
            "wikibio-a": [with_continuation(template, context, record) for record in self.accurate],
            "openwebtext": [whole_text(template, context, text) for text in self.openwebtext],
        }
        passages = {name: [passage for passage in group if passage is not None] for name, group in groups.items()}
        return {name: Mean.of(self._perplexities(method, group)) for name, group in passages.items() if group}

    def average(self, figures: dict[str, Measure]) -> float:
        """Minus the mean of the logarithms of the perplexities: tuning maximises it."""
        return -sum(log(figure.value or 1.0) for figure in figures.values()) / max(len(figures), 1)

    @torch.no_grad()
    def _perplexities(self, method: Method, passages: Sequence[Passage]) -> list[float]:
        values = []
        for batch in batched(passages, TEXTS_WITH_LOGITS):
            prompts = padded_right([passage.routed_by for passage in batch], method.base.device)
            texts = padded_right([passage.text.ids for passage in batch], method.base.device)
            for logits, passage in zip(method.logits(prompts, texts), batch, strict=True):
                ids, scored = passage.text.ids, passage.text.scored
                before = logits[len(ids) - scored - 1 : len(ids) - 1].float()
                loss = nn.functional.cross_entropy(before, torch.tensor(ids[-scored:], device=logits.device))
                values.append(exp(min(float(loss), HIGHEST_LOSS)))
        return values


Scoring = GenerationScoring | PerplexityScoring
