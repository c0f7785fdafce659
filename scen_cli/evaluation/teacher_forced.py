"""What the model makes of a text that is given to it: losses, token accuracy, next-token distributions.

Nothing here is generation. It serves the perplexities of the Hallucination suite, the drift of
unrelated prompts, and the teacher-forced token accuracy that others report.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from scen_cli.editing.patched_model import PatchedModel
from scen_cli.model.keys import positions_of

LOGITS_AT_ONCE = 1 << 26  # numbers of logits in memory: 256 MB


@dataclass(frozen=True)
class Text:
    """Token ids, and how many of the last of them are scored."""

    ids: list[int]
    scored: int


@dataclass(frozen=True)
class Scores:
    """Of each scored token: its negative log-likelihood in nats, and whether it was the likeliest."""

    losses: list[float]
    likeliest: list[bool]


@torch.no_grad()
def score(patched: PatchedModel, texts: Sequence[Text], edits: Sequence[int | None]) -> list[Scores]:
    """Score each text under its edit's expert (None: the base), in batches of like lengths."""
    scores: dict[int, Scores] = {}
    for rows in _batches(patched, [len(text.ids) for text in texts]):
        logits = _logits(patched, [texts[row].ids for row in rows], [edits[row] for row in rows])
        for row, of_row in zip(rows, logits, strict=True):
            text = texts[row]
            target = torch.tensor(text.ids[-text.scored :], device=of_row.device)
            before = of_row[-text.scored - 1 : -1].float()
            losses = nn.functional.cross_entropy(before, target, reduction="none")
            scores[row] = Scores(losses.tolist(), (before.argmax(dim=-1) == target).tolist())
    return [scores[row] for row in range(len(texts))]


@torch.no_grad()
def next_token_kl(patched: PatchedModel, prompts: Sequence[str], edits: Sequence[int | None]) -> list[float]:
    """KL divergence (nats) of the next-token distribution after each prompt: base from patched.
    It is zero where no edit fired, since nothing was computed otherwise."""
    divergences = [0.0] * len(prompts)
    fired = [row for row, edit in enumerate(edits) if edit is not None]
    ids = [patched.template.prompt_ids(prompts[row]) for row in fired]
    for batch in _batches(patched, [len(tokens) for tokens in ids]):
        tokens = [ids[place] for place in batch]
        of_base, of_patched = (
            _logits(patched, tokens, under)[:, -1].cpu().double().log_softmax(dim=-1)
            for under in ([None] * len(batch), [edits[fired[place]] for place in batch])
        )
        apart = (of_base.exp() * (of_base - of_patched)).sum(dim=-1).clamp(min=0)
        for place, divergence in zip(batch, apart.tolist(), strict=True):
            divergences[fired[place]] = divergence
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
    """Rows in batches of like lengths whose logits fit in memory."""
    vocabulary = patched.model.get_output_embeddings().weight.shape[0]
    batch: list[int] = []
    for row in sorted(range(len(lengths)), key=lambda row: lengths[row]):
        if batch and (len(batch) + 1) * lengths[row] * vocabulary > LOGITS_AT_ONCE:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch
