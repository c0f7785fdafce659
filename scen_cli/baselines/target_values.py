"""The values that MEMIT and COMEBA-HK write: for each edit, a hidden state that makes its target likely.

Meng et al. 2023; `compute_z` in their code.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from scen_cli.baselines.closed_form_memory import ClosedFormSettings, EditContexts, edited_position
from scen_cli.baselines.context import MethodContext
from scen_cli.baselines.module_hooks import block_of, moved, recorded
from scen_cli.baselines.training_examples import padded_right, run_texts, take_step
from scen_cli.data.records import EditRecord
from scen_cli.model.ffn import EditedLayer
from scen_cli.model.template import Template

AnsweringBlock = Callable[[Tensor, Tensor], AbstractContextManager[Any]]  # see `Method.answering`
LEARNED = 5e-2  # MEMIT's: an edit with a smaller loss takes no more steps


def find_values(
    context: MethodContext,
    layer: EditedLayer,
    contexts: EditContexts,
    edits: Sequence[EditRecord],
    settings: ClosedFormSettings,
    answering: AnsweringBlock = lambda _ids, _mask: nullcontext(),
) -> Tensor:
    """Optimise the hidden states z that a decoder layer shall give at each edit's position.

    All edits run together, each independent of the others. The loss of an edit is the mean loss of its target over
    its contexts, plus the KL divergence of the next token after `SUBJECT is a` from the base's, plus the squared
    length of the move. The length of the move is clamped.

    Args:
        context: The base and the template.
        layer: The last edited layer.
        contexts: The edits' texts.
        edits: The edits.
        settings: Steps, rate and weights.
        answering: A block for texts that begin with prompts (ids, mask).

    Returns:
        z (edits, d), float32.
    """
    model, block, examples = context.base.model, block_of(layer), contexts.examples
    with torch.no_grad(), answering(*examples.prompts), recorded(block) as seen:
        run_texts(model, examples.ids)
    before = contexts.at_position(seen[block][1])[contexts.plain]
    length = before.norm(dim=1, keepdim=True)
    unit = length / before.shape[1] ** 0.5  # so that a learning rate means the same on bases of all sizes
    subject_kl = _SubjectKL(context, edits, settings.kl)
    move = torch.zeros_like(before, requires_grad=True)
    optimizer = torch.optim.Adam([move], lr=settings.value_lr)
    share = 1 / torch.bincount(contexts.edit, minlength=len(edits))[contexts.edit]
    best = torch.zeros_like(before)
    done = torch.zeros(len(edits), dtype=torch.bool, device=before.device)
    with torch.enable_grad():
        for step in range(settings.value_steps + 1):
            with answering(*examples.prompts), moved(block, contexts.position, (move * unit)[contexts.edit]):
                target_losses = examples.losses(run_texts(model, examples.ids))
            losses = torch.zeros_like(unit[:, 0]).index_add(0, contexts.edit, target_losses * share)
            losses = losses + subject_kl.losses(block, move * unit, answering)
            losses = losses + settings.decay * ((move * unit) ** 2).sum(dim=1) / length[:, 0] ** 2
            with torch.no_grad():
                best = torch.where(done[:, None], best, move * unit)
                done = done | (losses < LEARNED)
            if step == settings.value_steps or bool(done.all()):
                break
            take_step(optimizer, losses.sum())
            with torch.no_grad():
                room = settings.clamp * length / (move * unit).norm(dim=1, keepdim=True).clamp(min=1e-12)
                move *= room.clamp(max=1)
    return before + best


class _SubjectKL:
    """Keeps the next token after `SUBJECT is a`, for the edits that name their subject."""

    def __init__(self, context: MethodContext, edits: Sequence[EditRecord], weight: float) -> None:
        self.model, self.weight = context.base.model, weight
        named = [(index, edit.subject) for index, edit in enumerate(edits) if edit.subject and weight]
        self.edits = [index for index, _subject in named]
        if not named:
            return
        template, device = context.template, self.model.device
        plain = Template(template.tokenizer, "none", template.end_id, template.end_ids)
        texts = [(f"{subject} is a", subject) for _index, subject in named]
        self.ids, self.mask = padded_right([plain.prompt_ids(text) for text, _subject in texts], device)
        self.position = torch.tensor([edited_position(plain, *pair) for pair in texts], device=device)
        self.before: Tensor | None = None

    def losses(self, block: nn.Module, move: Tensor, answering: AnsweringBlock) -> Tensor:
        """The weighted divergences (edits,), zero for an edit without a subject."""
        zero = torch.zeros(len(move), device=move.device)
        if not self.edits:
            return zero
        rows = torch.tensor(self.edits, device=move.device)
        with answering(self.ids, self.mask):
            if self.before is None:
                with torch.no_grad():
                    self.before = self._next_token()
            with moved(block, self.position, move[rows]):
                after = self._next_token()
        divergence = nn.functional.kl_div(after, self.before, log_target=True, reduction="none").sum(dim=1)
        return zero.index_add(0, rows, self.weight * divergence)

    def _next_token(self) -> Tensor:
        logits = run_texts(self.model, self.ids)
        rows = torch.arange(len(self.ids), device=logits.device)
        return logits[rows, self.mask.sum(dim=1) - 1].float().log_softmax(dim=-1)
