"""Experts on their way from the process that trained them: safetensors, never pickled tensors."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

from scen_cli.experts.fit import ExpertFit
from scen_cli.experts.fit_records import FittedExpert
from scen_cli.model.expert_stack import LowRank

_TOLD = "told"  # the tensor of bytes that holds the rest, as JSON


def packed(fitted: Sequence[FittedExpert]) -> bytes:
    """Experts and all about their training, in one piece."""
    tensors: dict[str, Tensor] = {}
    told: list[dict[str, Any]] = []
    for place, one in enumerate(fitted):
        expert = one.fit.expert
        parts = {"full": expert} if isinstance(expert, Tensor) else {"a": expert.a, "b": expert.b}
        tensors |= {f"{place}.{name}": part.detach().cpu().contiguous() for name, part in parts.items()}
        fit = {"losses": one.fit.losses, "wrong_tokens": one.fit.wrong_tokens, "lead": one.fit.logit_margin}
        told.append({**fit, "seconds": one.seconds})
    text = json.dumps(told).encode()
    return bytes(save({**tensors, _TOLD: torch.frombuffer(bytearray(text), dtype=torch.uint8)}))


def unpacked(data: bytes) -> list[FittedExpert]:
    """The same experts, bit for bit."""
    tensors = load(data)
    told = json.loads(bytes(tensors[_TOLD].tolist()))
    fitted = []
    for place, one in enumerate(told):
        seconds = one.pop("seconds")
        full = tensors.get(f"{place}.full")
        expert = LowRank(tensors[f"{place}.a"], tensors[f"{place}.b"]) if full is None else full
        fitted.append(FittedExpert(ExpertFit(expert, **one), seconds))
    return fitted
