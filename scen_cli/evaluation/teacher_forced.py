"""Losses, token accuracy and next-token distributions on given texts: nothing here is generation.

Used for the perplexities of the Hallucination suite, the drift of unedited prompts, and the teacher-forced token
accuracy that other tools report.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from scen_cli.editing.patched_model import PatchedModel
from scen_cli.model.keys import must_stand_alone, positions_of

MAX_LOGITS = 1 << 26  # logits in memory at once: 256 MB in float32


@dataclass(frozen=True)
class Text:
    """Token ids, and how many of the last of them are scored."""

    ids: list[int]
    scored: int


@dataclass(frozen=True)
class Scores:
    """For each scored token: its negative log-likelihood in nats, and whether it was the most likely token."""

    losses: list[float]
    likeliest: list[bool]


@torch.no_grad()
def score(patched: PatchedModel, texts: Sequence[Text], edits: Sequence[int | None]) -> list[Scores]:
    """Score each text under its edit's expert (None: the base), in batches of similar lengths."""
    scores: dict[int, Scores] = {}
    for rows in _batches(patched, [len(text.ids) for text in texts]):
        logits = _logits(patched, [texts[row].ids for row in rows], [edits[row] for row in rows])
        for row, row_logits in zip(rows, logits, strict=True):
            text = texts[row]
            target = torch.tensor(text.ids[-text.scored :], device=row_logits.device)
            predictions = row_logits[-text.scored - 1 : -1].float()
            losses = nn.functional.cross_entropy(predictions, target, reduction="none")
            scores[row] = Scores(losses.tolist(), (predictions.argmax(dim=-1) == target).tolist())
    return [scores[row] for row in range(len(texts))]


@torch.no_grad()
def next_token_kl(patched: PatchedModel, prompts: Sequence[str], edits: Sequence[int | None]) -> list[float]:
    """KL divergence (base || patched, nats) of the next-token distribution after each prompt.

    It is zero where no edit was activated: there the base itself answers.
    """
    divergences = [0.0] * len(prompts)
    routed = [row for row, edit in enumerate(edits) if edit is not None]
    ids = [patched.template.prompt_ids(prompts[row]) for row in routed]
    for batch in _batches(patched, [len(tokens) for tokens in ids]):
        tokens = [ids[i] for i in batch]
        base, edited = (
            _logits(patched, tokens, experts)[:, -1].cpu().double().log_softmax(dim=-1)
            for experts in ([None] * len(batch), [edits[routed[i]] for i in batch])
        )
        kl = (base.exp() * (base - edited)).sum(dim=-1).clamp(min=0)
        for i, divergence in zip(batch, kl.tolist(), strict=True):
            divergences[routed[i]] = divergence
    return divergences


def _logits(patched: PatchedModel, rows: list[list[int]], edits: Sequence[int | None]) -> Tensor:
    """Logits (rows, tokens, vocabulary) of texts padded on the left, each under its edit's expert."""
    ids, mask = patched.pad(rows)
    patch = patched.patch()
    with patch.using(patch.rows_of(edits)):
        out = patched.model(input_ids=ids, attention_mask=mask, position_ids=positions_of(mask), use_cache=False)
    logits: Tensor = out.logits
    return logits


def _batches(patched: PatchedModel, lengths: Sequence[int]) -> Iterator[list[int]]:
    """Rows in batches of similar lengths whose logits fit in memory."""
    vocabulary = patched.model.get_output_embeddings().weight.shape[0]
    batch: list[int] = []
    for row in sorted(range(len(lengths)), key=lambda row: lengths[row]):
        too_large = (len(batch) + 1) * lengths[row] * vocabulary > MAX_LOGITS
        if batch and (too_large or must_stand_alone(patched.model, lengths[row])):
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch
