"""The router of an export: indexing neurons, and the settings that find a prompt's edit."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from scen_cli.editing.patched_model import PatchedModel
from scen_cli.editing.project_patch import ProjectPatch
from scen_cli.errors import VERIFY_HINT, DamageFound, UsageError
from scen_cli.model.base import check_unchanged
from scen_cli.model.quantization import quantization


@dataclass(frozen=True)
class Router:
    """What routing needs.

    Attributes:
        settings: JSON data, written to `config.json` (key `scen`) or `router.json`.
        tensors: `neurons` (t, h); `biases` (t,); the whitening's `mean` (h,), `axes` (r, h) and `scales` (r,), with
            r = 0 if the project has no whitening; `pieces` (bytes,), the text of all token ids in UTF-8, and
            `piece_ends` (v,), where the text of each id ends; both are empty if no edit has a subject.
    """

    settings: dict[str, Any]
    tensors: dict[str, Tensor]


@contextmanager
def exportable_patch(patched: PatchedModel) -> Iterator[ProjectPatch]:
    """Yield a snapshot of the active edits with all experts loaded.

    Raises:
        UsageError: No edit is active, or the base's weights have changed.
        DamageFound: An active edit is damaged.
    """
    check_unchanged(patched.base, patched.project.settings, every_byte=True)
    if not patched.patch().edits:
        raise UsageError("no edit is active: there is nothing to export", hint="`scen edit edits.jsonl` makes edits")
    with patched.snapshot() as patch:
        rows = torch.arange(len(patch.edits))
        if patch.damaged or (patch.bank.experts.fetch(rows) != rows).any():
            raise DamageFound("an active edit is damaged: nothing was exported", hint=VERIFY_HINT)
        yield patch


def router_of(patched: PatchedModel, patch: ProjectPatch) -> Router:
    """The router of a patch."""
    edited, routing, bank = patched.edited, patch.routing, patch.bank
    key_config, whitening, h = routing.key_config, bank.whitening, edited.ffn_width
    axes = whitening.axes if whitening else torch.zeros(0, h)
    quantize = patched.project.settings.get("quantize")
    pieces = patched.template.pieces if bank.subject_filter else []  # to find subjects in a prompt of token ids
    settings = {
        "layer": edited.index,
        "module": edited.module_name,
        "key_module": edited.down_proj_name,
        "ffn_width": h,
        "expert_shape": edited.projection_shape,
        "edits": patch.edits,
        "ranks": bank.experts.ranks.tolist(),
        "theta": routing.theta,
        "cosine": routing.cosine,
        "own_activation_floor": routing.own_activation_floor,
        "key_config": {**asdict(key_config), "sentence_ends": sorted(key_config.sentence_ends)},
        "whitening_rank": len(axes),
        "subjects": patch.subject_names,
        "piece_bytes": sum(map(len, pieces)),
        "piece_count": len(pieces),
        "template": patched.template.form,
        "quantization": quantization(quantize, patched.model.dtype) if quantize else None,
    }
    tensors = {
        "neurons": bank.neurons,
        "biases": bank.biases,
        "mean": whitening.mean if whitening else torch.zeros(h),
        "axes": axes,
        "scales": whitening.scales if whitening else torch.zeros(0),
        "pieces": torch.frombuffer(bytearray(b"".join(pieces) or b" "), dtype=torch.uint8)[: settings["piece_bytes"]],
        "piece_ends": torch.tensor(list(accumulate(map(len, pieces))), dtype=torch.int32),
    }
    # Through JSON, so that the settings are what a reader of the file gets: tuples become lists.
    return Router(json.loads(json.dumps(settings)), {name: tensor.cpu() for name, tensor in tensors.items()})
