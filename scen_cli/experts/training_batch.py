"""Lessons: what each of several experts is to learn, packed so that one pass of the model serves all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from scen_cli.model.loaded_base import TokenizedEdit


@dataclass(frozen=True)
class ExpertTask:
    """What one expert is to learn: the `samples` of its edits (one, unless edits share it), and `others`, which help
    it but need not be learned."""

    samples: Sequence[TokenizedEdit]
    others: Sequence[TokenizedEdit] = ()


@dataclass(frozen=True)
class FitStatus:
    """How an expert does on a lesson: `loss`, the mean over samples of their mean cross-entropy; the least `logit_margin` of a
    target token over the next best, in logits, on samples and others; for each sample, the places within its target
    whose greedy token, given the target up to there, is another one."""

    loss: float
    logit_margin: float
    wrong_tokens: list[list[int]]


class TrainingBatch:
    """Lessons as rows of tokens, (lessons, width, tokens): `width` samples each, padded on the right, where causal
    attention never looks. A lesson of fewer samples has its first again in their place, and none of it is `real`."""

    def __init__(self, lessons: Sequence[ExpertTask], ids: Tensor, real: Tensor, labels: Tensor, device: torch.device):
        """`labels`: at the place before each target token, that token; elsewhere -1."""
        self.lessons, self._ids, self.real, self._labels, self._device = list(lessons), ids, real, labels, device
        self.width = ids.shape[1]
        self.input_ids = ids.flatten(0, 1).to(device)
        predicts = labels >= 0
        # Where anything is predicted: a list, since the layer that gives the logits may be on another device.
        self.places: list[int] = predicts.any(dim=0).any(dim=0).nonzero().flatten().tolist()
        tokens, samples = predicts.sum(dim=2, keepdim=True), predicts.any(dim=2).sum(dim=1)[:, None, None]
        self._weights = (1 / (tokens * samples)).expand_as(labels)[predicts].to(device)
        self._targets = labels[predicts].to(device)
        there = predicts[:, :, self.places].flatten(0, 1)
        self._rows, self._at = there.nonzero()[:, 0], there.to(device)

    @classmethod
    def of(cls, lessons: Sequence[ExpertTask], device: torch.device) -> TrainingBatch:
        rows = [[*lesson.samples, *lesson.others] for lesson in lessons]
        tokens = max(len(sample.input_ids) for samples in rows for sample in samples)
        ids = torch.zeros(len(rows), max(map(len, rows)), tokens, dtype=torch.long)
        real, labels = torch.zeros_like(ids, dtype=torch.bool), torch.full_like(ids, -1)
        for lesson, samples in enumerate(rows):
            for place, sample in enumerate(samples):
                end, count = len(sample.input_ids), sample.target_length
                ids[lesson, place, :end] = torch.tensor(sample.input_ids)
                real[lesson, place, :end] = True
                labels[lesson, place, end - count - 1 : end - 1] = ids[lesson, place, end - count : end]
            ids[lesson, len(samples) :] = ids[lesson, 0]
        return cls(lessons, ids, real, labels, device)

    def only(self, stay: Sequence[int]) -> TrainingBatch:
        """The lessons of these places alone, in rows as long as they were."""
        ids, real, labels = (tensor[list(stay)] for tensor in (self._ids, self.real, self._labels))
        return TrainingBatch([self.lessons[place] for place in stay], ids, real, labels, self._device)

    def grade(self, logits: Tensor) -> tuple[Tensor, list[FitStatus]]:
        """Of logits (rows, places, vocabulary): the losses (lessons,), with their gradients, and how each does."""
        found = logits[self._at].float()
        each = nn.functional.cross_entropy(found, self._targets, reduction="none") * self._weights
        lesson = self._rows.to(self._device) // self.width
        losses = torch.zeros(len(self.lessons), device=self._device).index_add(0, lesson, each)
        with torch.no_grad():
            own = found.gather(1, self._targets[:, None])[:, 0]
            best = found.scatter(1, self._targets[:, None], -torch.inf).max(dim=1).values
            logit_margins, values = (own - best).tolist(), losses.tolist()
        wrong: list[list[list[int]]] = [[[] for _ in range(self.width)] for _ in self.lessons]
        least, seen, before = [torch.inf] * len(self.lessons), 0, -1
        for row, logit_margin in zip(self._rows.tolist(), logit_margins, strict=True):
            seen, before = (seen + 1, row) if row == before else (0, row)
            if not logit_margin > 0:  # a tie, or not a number
                wrong[row // self.width][row % self.width].append(seen)
            least[row // self.width] = (
                min(least[row // self.width], logit_margin) if logit_margin == logit_margin else -torch.inf
            )
        return losses, [
            FitStatus(values[place], least[place], wrong[place][: len(lesson.samples)])
            for place, lesson in enumerate(self.lessons)
        ]
