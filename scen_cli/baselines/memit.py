"""MEMIT (Meng et al. 2023, "Mass-Editing Memory in a Transformer"): write all edits into W_down of a few layers.

W_down is a linear memory of keys and values: C = lambda E[k k^T] over known keys (their equation 15), and the update
Delta = R K^T (C + K K^T)^-1 (their equation 14, layer by layer as in their Algorithm 1), which is solved in float64.
COMEBA-HK shares all but `Memit` itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from pydantic import Field
from torch import Tensor, nn

from scen_cli.baselines.context import Examples, MethodContext, batched, padded_right, run_texts, take_step
from scen_cli.baselines.hook_method import block_of, moved, recorded
from scen_cli.baselines.method import Method, Settings, attached
from scen_cli.baselines.weight_method import WeightMethod
from scen_cli.data.records import EditRecord
from scen_cli.experts.fit_records import OPENINGS
from scen_cli.model.ffn import EditedLayer, ridge_update
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
    spans = template.spans_of([subject] if subject else [], tokens)
    return (spans[-1][1] if spans else len(tokens)) - 1


LEARNED = 5e-2  # MEMIT's: an edit with a smaller loss takes no more steps


class _SubjectKL:
    """Keeps the next token after `SUBJECT is a`, for the edits that name their subject."""

    def __init__(self, method: ClosedFormMethod, edits: Sequence[EditRecord]) -> None:
        self.method, self.weight = method, method.settings.kl
        named = [(index, edit.subject) for index, edit in enumerate(edits) if edit.subject and self.weight]
        self.edits = [index for index, _subject in named]
        if not named:
            return
        template, device = method.template, method.model.device
        plain = Template(template.tokenizer, "none", template.end_id, template.end_ids)
        texts = [(f"{subject} is a", subject) for _index, subject in named]
        self.ids, self.mask = padded_right([plain.prompt_ids(text) for text, _subject in texts], device)
        self.position = torch.tensor([edited_position(plain, *pair) for pair in texts], device=device)
        self.before: Tensor | None = None

    def losses(self, block: nn.Module, move: Tensor) -> Tensor:
        """The weighted divergences (edits,), zero for an edit without a subject."""
        zero = torch.zeros(len(move), device=move.device)
        if not self.edits:
            return zero
        rows = torch.tensor(self.edits, device=move.device)
        with self.method.answering(self.ids, self.mask):
            if self.before is None:
                with torch.no_grad():
                    self.before = self._next_token()
            with moved(block, self.position, move[rows]):
                after = self._next_token()
        divergence = nn.functional.kl_div(after, self.before, log_target=True, reduction="none").sum(dim=1)
        return zero.index_add(0, rows, self.weight * divergence)

    def _next_token(self) -> Tensor:
        logits = run_texts(self.method.model, self.ids)
        rows = torch.arange(len(self.ids), device=logits.device)
        return logits[rows, self.mask.sum(dim=1) - 1].float().log_softmax(dim=-1)


class ClosedFormMethod(Method):
    """What MEMIT and COMEBA-HK share: `c` (h, h), float32, of each of the edited `layers`."""

    settings: ClosedFormSettings
    layers: list[EditedLayer]
    c: list[Tensor]

    def prepare(self) -> None:
        """C = lambda E[k k^T] over the keys of all tokens of the unedited prompts and the base's answers. The mean is
        computed once per context."""
        key = ("second moments", tuple(layer.index for layer in self.layers))
        self.c = [self.settings.known * moment for moment in self.context.cached(key, self._second_moments)]

    @torch.no_grad()
    def _second_moments(self) -> list[Tensor]:
        sums = [torch.zeros(layer.ffn_width, layer.ffn_width, dtype=torch.float64) for layer in self.layers]
        count = 0
        template = self.template
        texts = [template.prompt_ids(p) + (template.target_ids(p, a) if a else []) for p, a in self.context.unedited]
        for batch in batched(texts):
            ids, mask = padded_right(batch, self.base.device)
            with recorded(*(layer.down_proj for layer in self.layers)) as seen:
                run_texts(self.model, ids)
            for total, layer in zip(sums, self.layers, strict=True):
                keys = seen[layer.down_proj][0][mask.bool()].double().cpu()
                total += keys.T @ keys
            count += int(mask.sum())
        return [(total / max(count, 1)).float().to(self.base.device) for total in sums]

    def contexts(self, edits: Sequence[EditRecord]) -> EditContexts:
        return EditContexts.of(self.context, edits, self.settings.contexts, self.settings.at == "subject")

    def find_values(self, contexts: EditContexts, edits: Sequence[EditRecord]) -> Tensor:
        """Optimise the hidden states z (edits, d), float32, that the last edited layer shall give at each edit's
        position (`compute_z` in MEMIT's code).

        All edits run together, each independent of the others. The loss of an edit is the mean loss of its target over
        its contexts, plus the KL divergence of the next token after `SUBJECT is a` from the base's, plus the squared
        length of the move. The length of the move is clamped.
        """
        block, examples, settings = block_of(self.layers[-1]), contexts.examples, self.settings
        with torch.no_grad(), self.answering(*examples.prompts), recorded(block) as seen:
            run_texts(self.model, examples.ids)
        before = contexts.at_position(seen[block][1])[contexts.plain]
        length = before.norm(dim=1, keepdim=True)
        unit = length / before.shape[1] ** 0.5  # so that a learning rate means the same on bases of all sizes
        subject_kl = _SubjectKL(self, edits)
        move = torch.zeros_like(before, requires_grad=True)
        optimizer = torch.optim.Adam([move], lr=settings.value_lr)
        share = 1 / torch.bincount(contexts.edit, minlength=len(edits))[contexts.edit]
        best = torch.zeros_like(before)
        done = torch.zeros(len(edits), dtype=torch.bool, device=before.device)
        with torch.enable_grad():
            for step in range(settings.value_steps + 1):
                with self.answering(*examples.prompts), moved(block, contexts.position, (move * unit)[contexts.edit]):
                    target_losses = examples.losses(run_texts(self.model, examples.ids))
                losses = torch.zeros_like(unit[:, 0]).index_add(0, contexts.edit, target_losses * share)
                losses = losses + subject_kl.losses(block, move * unit)
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

    @torch.no_grad()
    def layer_update(self, index: int, contexts: EditContexts, values: Tensor) -> tuple[Tensor, Tensor]:
        """The update of one of the edited layers, for the model with the updates of the layers before.

        Args:
            index: The position in `layers` of the layer to update. Each takes an equal share of the residual that is
                left.
            contexts: The edits.
            values: The hidden states (edits, d) that the last edited layer shall give.

        Returns:
            The keys (edits, h), means over contexts, and Delta (d, h) in float64.
        """
        down_proj, last = self.layers[index].down_proj, block_of(self.layers[-1])
        with recorded(down_proj, last) as seen:
            run_texts(self.model, contexts.examples.ids)
        keys = contexts.mean_by_edit(contexts.at_position(seen[down_proj][0]))
        residual = values - contexts.at_position(seen[last][1])[contexts.plain]
        return keys, ridge_update(self.c[index], keys.T, residual.T / (len(self.layers) - index))

    def state(self) -> dict[str, Tensor]:
        return super().state() | {f"{layer.index}.c": c for layer, c in zip(self.layers, self.c, strict=True)}

    def load(self, state: dict[str, Tensor]) -> None:
        super().load(state)
        self.c = self.loaded(state, {f"{layer.index}.c": (layer.ffn_width,) * 2 for layer in self.layers})


class MemitSettings(ClosedFormSettings):
    """One batch of all edits. 15000 is the authors' lambda for GPT-J."""

    batch: int | None = Field(None, ge=1, description="edits fitted together; none: all of them")


class Memit(ClosedFormMethod, WeightMethod):
    """`c` is the base's. A second batch starts from the weights that the first one left."""

    name = "memit"
    settings: MemitSettings

    def __init__(self, context: MethodContext, settings: MemitSettings) -> None:
        super().__init__(context, settings, settings.layers)

    def fit(self, edits: Sequence[EditRecord]) -> None:
        contexts = self.contexts(edits)
        with attached(self):
            values = self.find_values(contexts, edits)
            for index, layer in enumerate(self.layers):
                _keys, delta = self.layer_update(index, contexts, values)
                self.add(layer, delta)
