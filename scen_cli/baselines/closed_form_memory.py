"""`down_proj` as a memory of keys and values: reading keys, and the closed form that writes new ones.

What MEMIT (Meng et al. 2023) and COMEBA-HK share. All that is solved is solved in float64.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from scen_cli.baselines.method import MethodContext
from scen_cli.baselines.training_examples import Examples, padded_right
from scen_cli.data.records import EditRecord
from scen_cli.model.ffn import EditedLayer
from scen_cli.model.prompt_augmentation import OPENINGS
from scen_cli.model.template import Template

AT_ONCE = 64  # texts run together


@dataclass(frozen=True)
class Contexts:
    """Edits as they are learned: each behind nothing, and behind a few sentences. `examples` holds all texts, those of
    edit i the rows where `edit` (rows,) is i, its plain text first; `place` (rows,) is the token that is written at:
    the last of the subject, or of the prompt."""

    examples: Examples
    edit: Tensor
    place: Tensor
    plain: Tensor  # (edits,) the row of each edit's plain text

    @classmethod
    def of(cls, given: MethodContext, edits: Sequence[EditRecord], count: int, at_subject: bool) -> Contexts:
        """`count` texts of each edit, as far as the base's context has room for them."""
        template, device = given.template, given.base.device
        others = [[f"{opening} {edit.prompt}" for opening in OPENINGS[: count - 1]] for edit in edits]
        texts = [
            [edit.prompt, *(text for text in some if given.has_room(text, edit.target))]
            for edit, some in zip(edits, others, strict=True)
        ]
        pairs = [(text, edit.target) for edit, some in zip(edits, texts, strict=True) for text in some]
        owners = [number for number, some in enumerate(texts) for _ in some]
        examples = Examples.of(template, pairs, device)
        places = [
            place_of(template, text, edits[owner].subject if at_subject else None)
            for (text, _target), owner in zip(pairs, owners, strict=True)
        ]
        plain = [owners.index(number) for number in range(len(edits))]
        return cls(examples, *(torch.tensor(one, device=device) for one in (owners, places, plain)))


def place_of(template: Template, prompt: str, subject: str | None) -> int:
    """The place of the subject's last token in the prompt's tokens, where it is named last; else of the last token."""
    tokens = template.prompt_ids(prompt)
    ends = [
        start + len(form) - 1
        for form in template.subject_forms(subject, [prompt])
        for start in range(len(tokens) - len(form) + 1)
        if tuple(tokens[start : start + len(form)]) == form
    ]
    return max(ends, default=len(tokens) - 1)


@contextmanager
def recorded(*modules: nn.Module) -> Iterator[dict[nn.Module, tuple[Tensor, Tensor]]]:
    """What goes into and comes out of modules in the forwards of this block: the last of each. (Hooks that were there
    before act first.)"""
    seen: dict[nn.Module, tuple[Tensor, Tensor]] = {}

    def note(module: nn.Module, args: tuple[Any, ...], options: dict[str, Any], output: Any) -> None:
        entered = args[0] if args else options["hidden_states"]
        seen[module] = entered, output[0] if isinstance(output, tuple) else output

    handles = [module.register_forward_hook(note, with_kwargs=True) for module in modules]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def second_moment(given: MethodContext, layers: Sequence[EditedLayer]) -> list[Tensor]:
    """The mean of k k^T (h, h), float32, over the keys of all tokens of the unedited prompts and the base's answers to
    them, for each layer. Kept with what is given: it is the base's alone."""
    wanted = [("second moment", one.index) for one in layers]
    if all(key in given.kept for key in wanted):
        return [given.kept[key] for key in wanted]
    sums = [torch.zeros(one.ffn_width, one.ffn_width, dtype=torch.float64) for one in layers]
    count = 0
    template = given.template
    texts = [template.prompt_ids(p) + (template.target_ids(p, a) if a else []) for p, a in given.unedited]
    for start in range(0, len(texts), AT_ONCE):
        some = texts[start : start + AT_ONCE]
        ids, mask = padded_right(some, given.base.device)
        with recorded(*(one.down_proj for one in layers)) as seen:
            given.base.model(input_ids=ids, use_cache=False)
        for total, one in zip(sums, layers, strict=True):
            keys = seen[one.down_proj][0][mask.bool()].double().cpu()
            total += keys.T @ keys
        count += int(mask.sum())
    moments = [(total / max(count, 1)).float().to(given.base.device) for total in sums]
    given.kept.update(zip(wanted, moments, strict=True))
    return moments


def mean_by_edit(values: Tensor, contexts: Contexts) -> Tensor:
    """The mean (edits, width) over each edit's texts of values (rows, width)."""
    count = len(contexts.plain)
    sums = torch.zeros(count, values.shape[1], dtype=values.dtype, device=values.device)
    return sums.index_add(0, contexts.edit, values) / torch.bincount(contexts.edit, minlength=count)[:, None]


def at_places(hidden: Tensor, contexts: Contexts) -> Tensor:
    """What (rows, width) stands at each text's place in hidden (rows, tokens, width), float32."""
    return hidden[torch.arange(len(hidden), device=hidden.device), contexts.place].float()
