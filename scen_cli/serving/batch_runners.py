"""What the model's thread does with prompts: routes and answers them, or routes them alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteria, StoppingCriteriaList

from scen_cli.editing.expert_bank import ProjectPatch
from scen_cli.editing.patched_model import PatchedModel
from scen_cli.serving.jobs import Job, Step

Seen = Callable[[int, int], None]  # is told of each batch: prompts, and active edits


def _begin(patched: PatchedModel, patch: ProjectPatch, jobs: Sequence[Job], seen: Seen) -> list[int]:
    """How many tokens each job's answer may take."""
    seen(len(jobs), len(patch.expert_of))
    for job in jobs:
        job.max_tokens = job.max_tokens or min(patched.longest_answer(), job.room)
    return [job.max_tokens or 1 for job in jobs]


def _together(lengths: Sequence[int], longest: Sequence[int], context: int | None, at_once: int) -> list[list[int]]:
    """Rows in batches in which the longest prompt and the longest answer fit the base's context together: rows that
    are done are computed with the others to the end. At most `at_once` in each."""
    batches: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda row: lengths[row]):
        batch = [*(batches[-1] if batches else []), row]
        widest = max(lengths[one] for one in batch) + max(longest[one] for one in batch)
        if batches and len(batch) <= at_once and (context is None or widest <= context):
            batches[-1] = batch
        else:
            batches.append([row])
    return batches


class Answering:
    """Answers prompts with the project's edits, as they are in the ledger when a batch begins."""

    def __init__(self, patched: PatchedModel, seen: Seen) -> None:
        self.patched, self._seen = patched, seen

    def __call__(self, jobs: Sequence[Job]) -> None:
        patched = self.patched
        with patched.snapshot() as patch:
            longest = _begin(patched, patch, jobs, self._seen)
            at_once = patch.full_at_once or len(jobs)
            for rows in _together([len(job.ids) for job in jobs], longest, patched.context, at_once):
                self._answer(patch, [jobs[row] for row in rows], [longest[row] for row in rows])

    @torch.inference_mode()
    def _answer(self, patch: ProjectPatch, jobs: Sequence[Job], longest: Sequence[int]) -> None:
        patched, sampling = self.patched, jobs[0].sampling
        with torch.random.fork_rng(enabled=sampling.seed is not None):
            if sampling.seed is not None:
                torch.manual_seed(sampling.seed)
            ids, mask = patched.pad([job.ids for job in jobs])
            how: dict[str, Any] = {"do_sample": False}
            if sampling.temperature > 0:
                how = {"do_sample": True, "temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0}
            with patch.deciding(patched.model, ids, mask) as decided:
                end_ids, width = patched.template.end_ids, ids.shape[1]
                telling = _Telling(jobs, longest, width, end_ids, lambda: patch.edits_of(decided.choice))
                patched.model.generate(
                    input_ids=ids,
                    attention_mask=mask,
                    max_new_tokens=max(longest),
                    pad_token_id=patched.pad_id,
                    eos_token_id=list(patched.template.end_ids),
                    stopping_criteria=StoppingCriteriaList([telling]),
                    **how,
                )


class _Telling(StoppingCriteria):
    """Called after each step of `generate`: tells each job its token, and says which rows are done."""

    def __init__(
        self,
        jobs: Sequence[Job],
        longest: Sequence[int],
        width: int,
        end_ids: Sequence[int],
        called: Callable[[], list[int | None]],
    ) -> None:
        self._jobs, self._longest, self._width, self._end_ids, self._called = jobs, longest, width, end_ids, called
        self._edits: list[int | None] = []
        self._done = [False] * len(jobs)

    def __call__(self, input_ids: Tensor, scores: Tensor, **_options: Any) -> Tensor:
        self._edits = self._edits or self._called()
        count = input_ids.shape[1] - self._width
        for row, token in enumerate(input_ids[:, -1].tolist()):
            if not self._done[row]:
                self._done[row] = self._tell(row, token, count)
        return torch.tensor(self._done, device=input_ids.device)

    def _tell(self, row: int, token: int, count: int) -> bool:
        """Whether the job is done."""
        job, edit = self._jobs[row], self._edits[row]
        if job.cancelled:
            return True
        ended, full = token in self._end_ids, count >= self._longest[row]
        job.tell(Step(edit, None if ended else token, "stop" if ended else "length" if full else None))
        return ended or full


class Finding:
    """Finds each prompt's edit alone: layers 0 to the edited one. `prepare` is called with the patch before."""

    def __init__(self, patched: PatchedModel, prepare: Callable[[ProjectPatch], object], seen: Seen) -> None:
        self.patched, self._prepare, self._seen = patched, prepare, seen

    @torch.inference_mode()
    def __call__(self, jobs: Sequence[Job]) -> None:
        with self.patched.snapshot() as patch:
            _begin(self.patched, patch, jobs, self._seen)
            self._prepare(patch)
            ids, mask = self.patched.pad([job.ids for job in jobs])
            choice = patch.bank.experts.fetch(patch.route(self.patched.model, ids, mask).choice.cpu())
            for job, edit in zip(jobs, patch.edits_of(choice), strict=True):
                job.tell(Step(edit, finish="stop"))
