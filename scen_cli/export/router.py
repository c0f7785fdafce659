"""What leaves a project whatever the form: the experts, the indexing neurons, and how prompts find them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scen_cli.editing.expert_bank import ProjectPatch
from scen_cli.editing.patched_model import PatchedModel
from scen_cli.errors import VERIFY_HINT, DamageFound, UsageError
from scen_cli.model.quantization import quantization


@dataclass(frozen=True)
class Router:
    """`settings`, plain data: where keys are read, thetas, the subjects of the second look, and the edit of each row
    of W_merge; `tensors`: `neurons` (t, h), `biases` (t,), and the whitening's `mean` (h,), `axes` (r, h) and
    `scales` (r,), with no axes if there is no whitening."""

    settings: dict[str, Any]
    tensors: dict[str, Tensor]


@contextmanager
def all_there(patched: PatchedModel) -> Iterator[ProjectPatch]:
    """The active edits, steady inside this block, every expert read.

    Raises `UsageError` if there is none, `DamageFound` if one is damaged.
    """
    if not patched.patch().edits:
        raise UsageError("no edit is active: there is nothing to export", hint="`scen edit edits.jsonl` makes some")
    with patched.snapshot() as patch:
        everything = torch.arange(len(patch.edits))
        if patch.damaged or (patch.bank.experts.fetch(everything) != everything).any():
            raise DamageFound("an active edit is damaged: nothing was exported", hint=VERIFY_HINT)
        yield patch


def router_of(patched: PatchedModel, patch: ProjectPatch) -> Router:
    """How prompts find the edits of a patch."""
    key_config, whitening, h = patch.routing.key_config, patch.bank.whitening, patched.edited.ffn_width
    axes = whitening.axes if whitening else torch.zeros(0, h)
    held = patched.project.settings.get("quantize")
    settings = {
        "module": patched.edited.module_name,
        "keys_at": patched.edited.down_proj_name,
        "h": h,
        "axes": len(axes),
        "layer": patched.edited.index,
        "edits": patch.edits,
        "expert_shape": patched.edited.projection_shape,
        "ranks": patch.bank.experts.ranks.tolist(),
        "theta": patch.theta,
        "subjects": patch.forms,
        "cosine": patch.routing.cosine,
        "own_activation_floor": patch.routing.own_activation_floor,
        "key_config": {**vars(key_config), "sentence_ends": sorted(key_config.sentence_ends)},
        "template": patched.template.form,
        "quantization": quantization(held, patched.model.dtype) if held else None,
    }
    tensors = {
        "neurons": patch.bank.neurons,
        "biases": patch.bank.biases,
        "mean": whitening.mean if whitening else torch.zeros(h),
        "axes": axes,
        "scales": whitening.scales if whitening else torch.zeros(0),
    }
    # Tuples become lists, as whoever reads the file will see them.
    return Router(json.loads(json.dumps(settings)), {name: tensor.cpu() for name, tensor in tensors.items()})
