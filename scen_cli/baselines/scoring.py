"""How a method is scored after its last edit: by generated answers, or by perplexities. The same for every method."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import exp, log
from typing import Any, Protocol

import torch
from torch import nn

from scen_cli.baselines.generate import answer
from scen_cli.baselines.method import Method, MethodContext
from scen_cli.baselines.training_examples import IGNORED, Examples, padded_right
from scen_cli.data.records import EditRecord
from scen_cli.evaluation.hallucination import Passage, continued, whole
from scen_cli.evaluation.metrics import Mean, Measure, Share
from scen_cli.evaluation.samples import REPHRASES
from scen_cli.model.generation import MAX_NEW_TOKENS

AT_ONCE = 16  # texts whose logits are in memory
HIGHEST = 700.0  # of a loss, whose exponential is a number still


class Scoring(Protocol):
    """Scores a method on `edits`, which it has fitted; `average` is what tuning looks at: more is better."""

    @property
    def edits(self) -> Sequence[EditRecord]: ...

    def about(self) -> list[Any]:
        """All that it scores, in plain types: of other prompts other results."""
        ...

    def score(self, method: Method) -> dict[str, Measure]: ...

    def average(self, figures: dict[str, Measure]) -> float: ...


@dataclass
class Answers:
    """Reliability, Generality and Locality by exact match of generated answers (the paper's equations 1 to 3), and
    teacher-forced token accuracy, which is not generation. `locality`: prompts no edit claims, and the base's answers.
    """

    given: MethodContext
    edits: Sequence[EditRecord]
    locality: Sequence[tuple[str, str]]
    options: dict[str, Any]

    def about(self) -> list[Any]:
        return [[edit.as_json() for edit in self.edits], list(self.locality), self.options]

    def score(self, method: Method) -> dict[str, Measure]:
        rephrased = [(text, edit.target) for edit in self.edits for text in edit.rephrases[:REPHRASES]]
        figures: dict[str, Measure] = {
            "reliability": self.reliability(method, self.edits),
            "generality": self._share(method, rephrased),
            "locality": self._share(method, self.locality),
        }
        return {**figures, "token-accuracy": self._token_accuracy(method)}

    @cached_property
    def longest(self) -> int:
        """Tokens to allow an answer: as many as the longest target takes."""
        template = self.given.template
        return max([MAX_NEW_TOKENS, *(len(template.target_ids(edit.prompt, edit.target)) for edit in self.edits)])

    def reliability(self, method: Method, edits: Sequence[EditRecord]) -> Share:
        return self._share(method, [(edit.prompt, edit.target) for edit in edits])

    def average(self, figures: dict[str, Measure]) -> float:
        """The paper's Avg: the mean of the three figures, as far as there are prompts for them."""
        shares = [figures[name].value for name in ("reliability", "generality", "locality")]
        there = [share for share in shares if share is not None]
        return sum(there) / max(len(there), 1)

    def _share(self, method: Method, wanted: Sequence[tuple[str, str]]) -> Share:
        options = {"max_new_tokens": self.longest, **self.options}
        found = answer(method.base, method.template, [prompt for prompt, _ in wanted], method, **options)
        return Share.of([one == target for one, (_, target) in zip(found, wanted, strict=True)])

    @torch.no_grad()
    def _token_accuracy(self, method: Method) -> Share:
        right: list[bool] = []
        for start in range(0, len(self.edits), AT_ONCE):
            pairs = [(edit.prompt, edit.target) for edit in self.edits[start : start + AT_ONCE]]
            examples = Examples.of(method.template, pairs, method.base.device)
            scored = examples.labels != IGNORED
            likeliest = method.logits(examples.prompts, (examples.ids, examples.mask)).argmax(dim=-1)
            right += (likeliest == examples.labels)[scored].tolist()
        return Share.of(right)


@dataclass(frozen=True)
class Perplexities:
    """Mean perplexities of WikiBio-E (edited), WikiBio-A (accurate) and OpenWebText: the Hallucination suite."""

    given: MethodContext
    edits: Sequence[EditRecord]
    accurate: Sequence[EditRecord]
    openwebtext: Sequence[str]

    def about(self) -> list[Any]:
        return [[edit.as_json() for edit in (*self.edits, *self.accurate)], list(self.openwebtext)]

    def score(self, method: Method) -> dict[str, Measure]:
        template = self.given.template
        context = getattr(self.given.base.model.config, "max_position_embeddings", None)
        groups = {
            "wikibio-e": [continued(template, context, edit) for edit in self.edits],
            "wikibio-a": [continued(template, context, record) for record in self.accurate],
            "openwebtext": [whole(template, context, text) for text in self.openwebtext],
        }
        known = {name: [one for one in group if one is not None] for name, group in groups.items()}
        return {name: Mean.of(self._perplexities(method, group)) for name, group in known.items() if group}

    def average(self, figures: dict[str, Measure]) -> float:
        """Less the mean of the logarithms of the perplexities."""
        return -sum(log(figure.value or 1.0) for figure in figures.values()) / max(len(figures), 1)

    @torch.no_grad()
    def _perplexities(self, method: Method, passages: Sequence[Passage]) -> list[float]:
        values = []
        for start in range(0, len(passages), AT_ONCE):
            some = passages[start : start + AT_ONCE]
            texts, prompts = (
                padded_right(rows, method.base.device)
                for rows in ([one.text.ids for one in some], [one.routed_by for one in some])
            )
            logits = method.logits(prompts, texts)
            for row, one in zip(logits, some, strict=True):
                end, scored = len(one.text.ids), one.text.scored
                before = row[end - scored - 1 : end - 1].float()
                loss = nn.functional.cross_entropy(before, torch.tensor(one.text.ids[-scored:], device=row.device))
                values.append(exp(min(float(loss), HIGHEST)))
        return values
