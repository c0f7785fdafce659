"""Runs a batch of requests on the local model: `BatchGenerator` routes and generates, `BatchRouter` only routes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteria, StoppingCriteriaList

from scen_cli.editing.patched_model import PatchedModel
from scen_cli.editing.project_patch import ProjectPatch
from scen_cli.model.keys import rope_boundary
from scen_cli.serving.request_queue import FinishReason, GenerationRequest, SamplingParams, StreamEvent

BatchObserver = Callable[[int, int], None]  # is called with each batch's number of prompts and of active edits


class _BatchRunner:
    """Runs batches with the edits that are active in the ledger when the batch begins."""

    def __init__(self, patched: PatchedModel, observe: BatchObserver) -> None:
        self.patched, self._observe = patched, observe

    @torch.inference_mode()
    def __call__(self, requests: Sequence[GenerationRequest]) -> None:
        with self.patched.snapshot() as patch:
            self._observe(len(requests), len(patch.expert_of))
            longest_answer = self.patched.longest_answer()
            for request in requests:
                request.limit_tokens(longest_answer)
            self.run(patch, requests)

    def run(self, patch: ProjectPatch, requests: Sequence[GenerationRequest]) -> None:
        raise NotImplementedError


def _split_by_length(
    requests: Sequence[GenerationRequest], longest: int | None, max_batch: int
) -> list[list[GenerationRequest]]:
    """Split requests into batches whose longest prompt plus longest answer has at most `longest` tokens.

    `generate` computes finished rows together with the others until all are finished, so each row takes the positions
    of the longest row.
    """
    batches: list[list[GenerationRequest]] = []
    for request in sorted(requests, key=lambda request: len(request.prompt_ids)):
        batch = [*(batches[-1] if batches else []), request]
        width = len(request.prompt_ids) + max(other.max_tokens for other in batch)
        if batches and len(batch) <= max_batch and (longest is None or width <= longest):
            batches[-1] = batch
        else:
            batches.append([request])
    return batches


class BatchGenerator(_BatchRunner):
    """Generates answers."""

    def run(self, patch: ProjectPatch, requests: Sequence[GenerationRequest]) -> None:
        # A longer sequence has no place in the context, or changes the position embeddings of its batch.
        limits = [limit for limit in (self.patched.context, rope_boundary(self.patched.model)) if limit]
        for batch in _split_by_length(requests, min(limits, default=None), patch.full_at_once or len(requests)):
            self._generate(patch, batch)

    def _generate(self, patch: ProjectPatch, requests: Sequence[GenerationRequest]) -> None:
        patched, sampling = self.patched, requests[0].sampling
        with torch.random.fork_rng(enabled=sampling.seed is not None):
            if sampling.seed is not None:
                torch.manual_seed(sampling.seed)
            ids, mask = patched.pad([request.prompt_ids for request in requests])
            end_ids = list(patched.template.end_ids)
            with patch.deciding(patched.model, ids, mask) as route:
                sender = _TokenSender(requests, ids.shape[1], end_ids, lambda: patch.edits_of(route.choice))
                patched.model.generate(
                    input_ids=ids,
                    attention_mask=mask,
                    max_new_tokens=max(request.max_tokens for request in requests),
                    pad_token_id=patched.pad_id,
                    eos_token_id=end_ids,
                    stopping_criteria=StoppingCriteriaList([sender]),
                    **_decoding(sampling),
                )


def _decoding(sampling: SamplingParams) -> dict[str, Any]:
    """Options of `generate`."""
    options: dict[str, Any] = {"do_sample": False}
    if sampling.temperature > 0:
        options = {"do_sample": True, "temperature": sampling.temperature, "top_p": sampling.top_p}
        options |= {"top_k": max(sampling.top_k, 0), "min_p": sampling.min_p or None}
    if sampling.repetition_penalty != 1:
        options["repetition_penalty"] = sampling.repetition_penalty
    return options


class _TokenSender(StoppingCriteria):
    """`generate` calls this after each step: it sends each request its token, and returns which rows are finished."""

    def __init__(
        self,
        requests: Sequence[GenerationRequest],
        prompt_width: int,
        end_ids: Sequence[int],
        routed_edits: Callable[[], list[int | None]],  # known after the first forward
    ) -> None:
        self._requests, self._prompt_width = requests, prompt_width
        self._end_ids, self._routed_edits = end_ids, routed_edits
        self._edits: list[int | None] = []
        self._finished = [False] * len(requests)

    def __call__(self, input_ids: Tensor, scores: Tensor, **_options: Any) -> Tensor:
        self._edits = self._edits or self._routed_edits()
        generated = input_ids.shape[1] - self._prompt_width
        for row, token in enumerate(input_ids[:, -1].tolist()):
            self._finished[row] = self._finished[row] or self._send(row, token, generated)
        return torch.tensor(self._finished, device=input_ids.device)

    def _send(self, row: int, token: int, generated: int) -> bool:
        """Send one row's token. Returns whether the row is finished."""
        request, edit = self._requests[row], self._edits[row]
        if request.cancelled:
            return True
        ended, full = token in self._end_ids, generated >= request.max_tokens
        finish_reason: FinishReason | None = "stop" if ended else "length" if full else None
        request.send(StreamEvent(edit, None if ended else token, finish_reason))
        return ended or full


class BatchRouter(_BatchRunner):
    """Finds each prompt's edit: runs layers 0 to the edited one. `prepare` is called with the patch first."""

    def __init__(
        self, patched: PatchedModel, prepare: Callable[[ProjectPatch], object], observe: BatchObserver
    ) -> None:
        super().__init__(patched, observe)
        self._prepare = prepare

    def run(self, patch: ProjectPatch, requests: Sequence[GenerationRequest]) -> None:
        self._prepare(patch)
        ids, mask = self.patched.pad([request.prompt_ids for request in requests])
        # `fetch` replaces experts that cannot be read by the base.
        choice = patch.bank.experts.fetch(patch.route(self.patched.model, ids, mask).choice.cpu())
        for request, edit in zip(requests, patch.edits_of(choice), strict=True):
            request.send(StreamEvent(edit, finish_reason="stop"))
