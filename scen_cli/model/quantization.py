"""Load a base that is larger than a GPU: quantise its matrices to 8 or 4 bits, or spread its layers over devices.

Both use transformers (`quantization_config`, `device_map`). Experts, neurons and keys are never quantised.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from importlib.util import find_spec
from logging import ERROR, getLogger
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, BitsAndBytesConfig, PreTrainedModel

from scen_cli.errors import UsageError

QUANTIZED = ("8bit", "4bit")
DEVICE_MAPS = ("auto", "balanced", "balanced_low_0", "sequential")  # accelerate's


def loading_options(
    folder: Path,
    dtype: torch.dtype | None,
    device: torch.device,
    quantize: str | None = None,
    device_map: str | Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Arguments of `from_pretrained` for a base that is quantised or spread over devices; empty for any other.

    Args:
        folder: The checkpoint.
        dtype: The dtype that a 4-bit base computes in; None: the checkpoint's own.
        device: The device for all layers, if there is no device map.
        quantize: One of `QUANTIZED`, or None.
        device_map: accelerate's device map, or None.

    Raises:
        UsageError: An option is unknown, a package is missing, or the checkpoint is quantised already.
    """
    check_known(quantize, device_map if isinstance(device_map, str) else None)
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    quantized_checkpoint = quantization_of(config) is not None
    if quantize is None and device_map is None and not quantized_checkpoint:
        return {}
    _require("accelerate")
    options: dict[str, Any] = {"device_map": device_map or {"": device}}
    if quantize is None:
        return options
    if quantized_checkpoint:
        raise UsageError("this base is quantised already", hint="omit `--quantize`")
    _require("bitsandbytes")
    getLogger("bitsandbytes").setLevel(ERROR)  # at every step it warns that 8-bit matrices compute in 16 bits
    settings = quantization(quantize, dtype or config.dtype or torch.float32)
    return options | {"quantization_config": BitsAndBytesConfig(**settings)}


def check_known(quantize: str | None, device_map: str | None) -> None:
    """Raise `UsageError` for an unknown quantisation or device map."""
    for what, value, known in (("quantisation", quantize, QUANTIZED), ("device map", device_map, DEVICE_MAPS)):
        if value is not None and value not in known:
            raise UsageError(f"unknown {what} `{value}`", hint=f"one of: {', '.join(known)}")


def check_loaded_as(model: PreTrainedModel, folder: Path, quantize: str | None) -> None:
    """Raise `UsageError` unless a model that was loaded from this folder has this quantisation."""
    if quantization_of(AutoConfig.from_pretrained(folder, trust_remote_code=False)) is not None:
        return  # the checkpoint itself is quantised
    config = getattr(model.config, "quantization_config", None)
    actual = next((bits for bits in QUANTIZED if getattr(config, f"load_in_{bits}", False)), None)
    if actual != quantize:
        raise UsageError(
            f"the loaded base has {actual or 'its own dtype'}, the settings ask for {quantize or 'its own dtype'}",
            hint="load it with `load_base(..., quantize=...)`",
        )


def quantization(quantize: str, dtype: torch.dtype) -> dict[str, Any]:
    """Settings of a `BitsAndBytesConfig` as plain data.

    8 bits: LLM.int8() (Dettmers et al. 2022). 4 bits: NF4 (Dettmers et al. 2023), which computes in `dtype`.
    """
    if quantize == "8bit":
        return {"load_in_8bit": True}
    compute = str(dtype).removeprefix("torch.")
    return {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": compute}


def quantization_of(config: Any) -> str | None:
    """The quantisation method of a base's config (`bitsandbytes`, `gptq`, ...); None if it is not quantised."""
    settings = getattr(config, "quantization_config", None)
    if settings is None:
        return None
    method = settings.get("quant_method") if isinstance(settings, dict) else settings.quant_method
    return "bitsandbytes" if method is None else str(getattr(method, "value", method)).split("_")[0]


def is_whole(model: PreTrainedModel) -> bool:
    """Whether all weights are in memory as the checkpoint has them: not quantised, none offloaded."""
    return quantization_of(model.config) is None and not any(weight.is_meta for weight in model.parameters())


def weight_of(module: nn.Module) -> Tensor:
    """A float32 copy of a matrix's weight, dequantised, on the device where the matrix computes."""
    with _weights_loaded(module):
        weight: Any = module.weight
        if quantized_by_bitsandbytes(module):
            from transformers.integrations.bitsandbytes import dequantize_bnb_weight

            weight = dequantize_bnb_weight(weight, getattr(module, "state", None))
        copy: Tensor = weight.detach().to(torch.float32, copy=True)
        return copy


def quantized_by_bitsandbytes(module: nn.Module) -> bool:
    return type(module).__name__ in ("Linear4bit", "Linear8bitLt")


def _weights_loaded(module: nn.Module) -> AbstractContextManager[Any]:
    """Inside this block, offloaded weights are on the device where the module computes."""
    if not module.weight.is_meta:
        return nullcontext()
    from accelerate.utils import align_module_device

    return align_module_device(module)


def _require(package: str) -> None:
    if find_spec(package) is None:
        raise UsageError(
            f"`{package}` is not installed: a quantised base, or one spread over devices, needs it",
            hint="pip install 'scen-cli[large]'",
        )
