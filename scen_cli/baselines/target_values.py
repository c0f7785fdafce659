"""The values that MEMIT and COMEBA-HK write: for each edit the hidden state that makes its target likely."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn
from transformers import PreTrainedModel

from scen_cli.baselines.closed_form_memory import Contexts, at_places, place_of, recorded
from scen_cli.baselines.method import Settings
from scen_cli.data.records import EditRecord
from scen_cli.model.ffn import EditedLayer
from scen_cli.model.template import Template

Around = Callable[[Tensor, Tensor], AbstractContextManager[Any]]  # a block for texts that begin with (ids, mask)
LEARNED = 5e-2  # MEMIT's: an edit whose loss is below takes no more steps


class ValueSettings(Settings):
    """MEMIT's compute_z, with the values of its authors' GPT-J configuration where a number is given."""

    layers: int = Field(1, ge=1, description="decoder layers in a row, up to the project's, that are written to")
    at: str = Field("subject", pattern="^(subject|last)$", description="write at the subject's last token, or the last")
    contexts: int = Field(4, ge=1, le=4, description="the prompt alone, and behind so many sentences less one")
    value_steps: int = Field(25, ge=1, description="Adam steps for a value")
    value_lr: float = Field(
        0.5, gt=0, description="Adam's rate for a value, where a hidden state has length 1 a number"
    )
    decay: float = Field(0.5, ge=0, description="weight decay on the value's move")
    kl: float = Field(0.0625, ge=0, description="weight of the KL divergence on `SUBJECT is a`")
    clamp: float = Field(0.75, gt=0, description="the move's greatest length, in lengths of the hidden state")


def find_values(
    model: PreTrainedModel,
    template: Template,
    layer: EditedLayer,
    contexts: Contexts,
    edits: Sequence[EditRecord],
    settings: ValueSettings,
    around: Around = lambda _ids, _mask: nullcontext(),
) -> Tensor:
    """The hidden states z (edits, d), float32, that the last edited layer is to give at each edit's place.

    All edits at once, each as if alone. The loss of one: the mean over its contexts of the target's, the KL divergence
    from the base's next token after `SUBJECT is a`, and the decay of the move, whose length is clamped.
    """
    block = layer.layers[layer.index]
    examples = contexts.examples
    with torch.no_grad(), around(*examples.prompts), recorded(block) as seen:
        model(input_ids=examples.ids, use_cache=False)
    before = at_places(seen[block][1], contexts)[contexts.plain]
    length = before.norm(dim=1, keepdim=True)
    unit = length / before.shape[1] ** 0.5  # a rate that means the same on bases of all sizes
    kept = _KeptMeaning(model, template, edits, settings.kl)
    move = torch.zeros_like(before, requires_grad=True)
    optimizer = torch.optim.Adam([move], lr=settings.value_lr)
    share = 1 / torch.bincount(contexts.edit, minlength=len(edits))[contexts.edit]
    best = torch.zeros_like(before)
    done = torch.zeros(len(edits), dtype=torch.bool, device=before.device)
    with torch.enable_grad():
        for step in range(settings.value_steps + 1):
            with around(*examples.prompts), moved(block, contexts.place, (move * unit)[contexts.edit]):
                logits = model(input_ids=examples.ids, use_cache=False).logits
            losses = torch.zeros_like(unit[:, 0]).index_add(0, contexts.edit, examples.losses(logits) * share)
            losses = losses + kept.losses(block, move * unit, around)
            losses = losses + settings.decay * ((move * unit) ** 2).sum(dim=1) / length[:, 0] ** 2
            with torch.no_grad():
                best = torch.where(done[:, None], best, move * unit)
                done = done | (losses < LEARNED)
            if step == settings.value_steps or bool(done.all()):
                break
            optimizer.zero_grad()
            losses.sum().backward()
            optimizer.step()
            with torch.no_grad():
                room = settings.clamp * length / (move * unit).norm(dim=1, keepdim=True).clamp(min=1e-12)
                move *= room.clamp(max=1)
    return before + best


class _KeptMeaning:
    """What the base says after `SUBJECT is a`, of edits that name their subject: it is to stay."""

    def __init__(self, model: PreTrainedModel, template: Template, edits: Sequence[EditRecord], weight: float) -> None:
        self.model, self.weight = model, weight
        self.edits = [number for number, edit in enumerate(edits) if edit.subject and weight]
        if not self.edits:
            return
        texts = [f"{edits[number].subject} is a" for number in self.edits]
        plain = Template(template.tokenizer, "none", template.end_id, template.end_ids)
        rows = [plain.prompt_ids(text) for text in texts]
        device = model.device
        self.place = torch.tensor(
            [place_of(plain, text, edits[n].subject) for text, n in zip(texts, self.edits, strict=True)], device=device
        )
        self.ids = torch.tensor([row + [0] * (max(map(len, rows)) - len(row)) for row in rows], device=device)
        self.last = torch.tensor([len(row) - 1 for row in rows], device=device)
        self.mask = (torch.arange(self.ids.shape[1], device=device) <= self.last[:, None]).long()
        self.before: Tensor | None = None

    def losses(self, block: nn.Module, move: Tensor, around: Around) -> Tensor:
        """The weighted divergences (edits,): zero for an edit without a subject."""
        zero = torch.zeros(len(move), device=move.device)
        if not self.edits:
            return zero
        mine = torch.tensor(self.edits, device=move.device)
        with around(self.ids, self.mask):
            if self.before is None:
                with torch.no_grad():
                    self.before = self._next_token()
            with moved(block, self.place, move[mine]):
                after = self._next_token()
        apart = nn.functional.kl_div(after, self.before, log_target=True, reduction="none").sum(dim=1)
        return zero.index_add(0, mine, self.weight * apart)

    def _next_token(self) -> Tensor:
        logits = self.model(input_ids=self.ids, use_cache=False).logits
        return logits[torch.arange(len(self.ids), device=logits.device), self.last].float().log_softmax(dim=-1)


class moved:  # noqa: N801 (a block, as `with recorded(...)` is)
    """Inside this block a decoder layer's output is moved at one token of each row."""

    def __init__(self, block: nn.Module, place: Tensor, move: Tensor) -> None:
        self.block, self.place, self.move = block, place, move

    def __enter__(self) -> None:
        self.handle = self.block.register_forward_hook(self._move)

    def __exit__(self, *_error: object) -> None:
        self.handle.remove()

    def _move(self, _module: nn.Module, _args: Any, output: Any) -> Any:
        hidden = output[0] if isinstance(output, tuple) else output
        rows = torch.arange(len(hidden), device=hidden.device)
        added = torch.zeros_like(hidden, dtype=torch.float32).index_put((rows, self.place), self.move)
        moved = (hidden.float() + added).to(hidden.dtype)
        return (moved, *output[1:]) if isinstance(output, tuple) else moved
