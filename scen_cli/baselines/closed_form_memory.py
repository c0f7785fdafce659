"""W_down as a linear memory of keys and values: what MEMIT and COMEBA-HK share.

Meng et al. 2023, "Mass-Editing Memory in a Transformer": C = lambda E[k k^T] over known keys (their equation 15), and
the update Delta = R K^T (C + K K^T)^-1 (their equation 14), which is solved in float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from pydantic import Field
from torch import Tensor
from transformers import PreTrainedModel

from scen_cli.baselines.context import MethodContext
from scen_cli.baselines.method import Settings
from scen_cli.baselines.module_hooks import block_of, recorded
from scen_cli.baselines.training_examples import TEXTS_PER_PASS, Examples, batched, padded_right, run_texts
from scen_cli.data.records import EditRecord
from scen_cli.experts.training_prompts import OPENINGS
from scen_cli.model.ffn import EditedLayer
from scen_cli.model.ridge_update import ridge_update
from scen_cli.model.template import Prompt, Template


class ClosedFormSettings(Settings):
    """MEMIT's, with the values of its authors' GPT-J configuration where a number is given."""

    layers: int = Field(1, ge=1, description="consecutive decoder layers to edit, up to the project's")
    at: str = Field("subject", pattern="^(subject|last)$", description="edit the subject's last token, or the last")
    contexts: int = Field(4, ge=1, le=4, description="texts per edit: the prompt alone, and after other sentences")
    value_steps: int = Field(25, ge=1, description="Adam steps for a value")
    value_lr: float = Field(0.5, gt=0, description="Adam's rate for a value, for hidden states of length sqrt(d)")
    decay: float = Field(0.5, ge=0, description="weight decay on the value's move")
    kl: float = Field(0.0625, ge=0, description="weight of the KL divergence on `SUBJECT is a`")
    clamp: float = Field(0.75, gt=0, description="longest move, relative to the hidden state's length")
    known: float = Field(15000, gt=0, description="lambda: the weight of the known keys")


@dataclass(frozen=True)
class EditContexts:
    """Edits in the contexts they are learned in: each prompt alone, and after other sentences.

    Attributes:
        examples: All texts; those of one edit are consecutive, and its prompt alone comes first.
        edit: (rows,) the index of each text's edit.
        position: (rows,) the edited token: the last of the subject, or of the prompt.
        plain: (edits,) the row of each edit's prompt alone.
    """

    examples: Examples
    edit: Tensor
    position: Tensor
    plain: Tensor

    @classmethod
    def of(cls, context: MethodContext, edits: Sequence[EditRecord], count: int, at_subject: bool) -> EditContexts:
        """`count` texts per edit, without those that do not fit the base's context."""
        pairs: list[tuple[Prompt, str]] = []
        edit_indices, positions, plain = [], [], []
        for index, edit in enumerate(edits):
            longer = (f"{opening} {edit.prompt}" for opening in OPENINGS[: count - 1])
            texts = [edit.prompt, *(text for text in longer if context.has_room(text, edit.target))]
            plain.append(len(pairs))
            pairs += [(text, edit.target) for text in texts]
            edit_indices += [index] * len(texts)
            subject = edit.subject if at_subject else None
            positions += [edited_position(context.template, text, subject) for text in texts]
        tensors = (torch.tensor(numbers, device=context.base.device) for numbers in (edit_indices, positions, plain))
        return cls(context.examples(pairs), *tensors)

    def at_position(self, hidden: Tensor) -> Tensor:
        """The row (rows, width), float32, of hidden (rows, tokens, width) at each text's edited token."""
        return hidden[torch.arange(len(hidden), device=hidden.device), self.position].float()

    def mean_by_edit(self, values: Tensor) -> Tensor:
        """The mean (edits, width) of values (rows, width) over each edit's texts."""
        count = len(self.plain)
        sums = torch.zeros(count, values.shape[1], dtype=values.dtype, device=values.device)
        return sums.index_add(0, self.edit, values) / torch.bincount(self.edit, minlength=count)[:, None]


def edited_position(template: Template, prompt: str, subject: str | None) -> int:
    """The index of the subject's last token in the prompt's tokens, at its last occurrence; of the last token if the
    prompt does not contain the subject."""
    tokens = template.prompt_ids(prompt)
    ends = [
        start + len(form) - 1
        for form in template.subject_forms(subject, [prompt])
        for start in range(len(tokens) - len(form) + 1)
        if tuple(tokens[start : start + len(form)]) == form
    ]
    return max(ends, default=len(tokens) - 1)


def known_keys(context: MethodContext, layers: Sequence[EditedLayer], weight: float) -> list[Tensor]:
    """C (h, h) = weight * E[k k^T], float32, for each layer: over the keys of all tokens of the unedited prompts and
    the base's answers. The mean is computed once per context."""
    key = ("second moments", tuple(layer.index for layer in layers))
    return [weight * moment for moment in context.cached(key, lambda: _second_moments(context, layers))]


@torch.no_grad()
def _second_moments(context: MethodContext, layers: Sequence[EditedLayer]) -> list[Tensor]:
    sums = [torch.zeros(layer.ffn_width, layer.ffn_width, dtype=torch.float64) for layer in layers]
    count = 0
    template = context.template
    texts = [template.prompt_ids(p) + (template.target_ids(p, a) if a else []) for p, a in context.unedited]
    for batch in batched(texts, TEXTS_PER_PASS):
        ids, mask = padded_right(batch, context.base.device)
        with recorded(*(layer.down_proj for layer in layers)) as seen:
            run_texts(context.base.model, ids)
        for total, layer in zip(sums, layers, strict=True):
            keys = seen[layer.down_proj][0][mask.bool()].double().cpu()
            total += keys.T @ keys
        count += int(mask.sum())
    return [(total / max(count, 1)).float().to(context.base.device) for total in sums]


@torch.no_grad()
def layer_update(
    model: PreTrainedModel, layers: Sequence[EditedLayer], index: int, c: Tensor, contexts: EditContexts, values: Tensor
) -> tuple[Tensor, Tensor]:
    """The update of one of the edited layers, for the model as it is now.

    Args:
        model: The model with the updates of the layers before.
        layers: All edited layers; each takes an equal share of the residual that is left.
        index: The position in `layers` of the layer to update.
        c: The layer's C (h, h).
        contexts: The edits.
        values: The hidden states (edits, d) that the last edited layer shall give.

    Returns:
        The keys (edits, h), means over contexts, and Delta (d, h) in float64.
    """
    down_proj, last = layers[index].down_proj, block_of(layers[-1])
    with recorded(down_proj, last) as seen:
        run_texts(model, contexts.examples.ids)
    keys = contexts.mean_by_edit(contexts.at_position(seen[down_proj][0]))
    residual = values - contexts.at_position(seen[last][1])[contexts.plain]
    return keys, ridge_update(c, keys.T, residual.T / (len(layers) - index))
