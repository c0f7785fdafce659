"""Two devices that are not there: every tensor is told which of them it would be on, and what mixes them is refused.

All is computed on the CPU. What no function of torch made (gradients, say) belongs to neither and goes with both.
"""

from __future__ import annotations

from typing import Any

import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map
from torch.utils.weak import WeakTensorKeyDictionary

CPU, FIRST, SECOND = torch.device("cpu"), torch.device("xpu", 0), torch.device("xpu", 1)
FREE = {"copy_", "__setitem__", "set_", "__set__", "__get__", "requires_grad_"}  # may meet tensors of other devices


class TwoDevices(TorchFunctionMode):
    """Inside this block tensors have the devices they are sent to."""

    def __init__(self) -> None:
        super().__init__()
        self.of: WeakTensorKeyDictionary = WeakTensorKeyDictionary()

    def put(self, module: nn.Module, device: torch.device) -> None:
        for tensor in (*module.parameters(), *module.buffers()):
            self.of[tensor] = device

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if function == Tensor.device.__get__:
            return self.of.get(args[0], CPU)
        if function == Tensor.is_cpu.__get__:
            return self.of.get(args[0], CPU) == CPU
        if function == Tensor.cpu:
            function, kwargs = Tensor.to, {"device": CPU}
        sent, args, kwargs = self._sent(function, args, kwargs)
        tensors = [one for one in tree_flatten((args, kwargs))[0] if isinstance(one, Tensor)]
        device = sent or self._meet(function, args, tensors)
        out = function(*args, **kwargs)
        if device is not None:
            tree_map(lambda one: self._label(one, device), out)
        return out

    def _label(self, one: Any, device: torch.device) -> Any:
        if isinstance(one, Tensor):
            self.of[one] = device
        return one

    def _sent(self, function: Any, args: Any, kwargs: Any) -> tuple[torch.device | None, Any, Any]:
        """The device that is asked for, and the arguments with the CPU in its place."""
        found = kwargs.get("device")
        if found is None and function.__name__ == "to":
            found = next((one for one in args[1:] if isinstance(one, (torch.device, str, int))), None)
            like = next((one for one in args[1:] if isinstance(one, Tensor)), None)
            if like is not None:
                return self.of.get(like, CPU), args, kwargs
        if found is None:
            makes = not any(isinstance(one, Tensor) for one in tree_flatten((args, kwargs))[0])
            return (CPU if makes else None), args, kwargs
        told = torch.device("xpu", found) if isinstance(found, int) else torch.device(found)
        if "device" in kwargs:
            kwargs["device"] = CPU
        sent = tuple(CPU if place and one is found else one for place, one in enumerate(args))
        if function.__name__ == "to" and told != self.of.get(args[0], CPU):
            kwargs["copy"] = True  # else torch hands back the tensor itself, which stays where it is
        return told, sent, kwargs

    def _meet(self, function: Any, args: Any, tensors: list[Tensor]) -> torch.device | None:
        """The device of what a function gives. Raises `RuntimeError` if its tensors are on different ones."""
        known = [(one, self.of[one]) for one in tensors if one in self.of]
        if not known:
            return None
        if function.__name__ in FREE:
            return self.of.get(args[0]) if isinstance(args[0], Tensor) else None
        if function.__name__ == "__getitem__":
            known = [known[0], *((one, device) for one, device in known[1:] if device != CPU)]
        heavy = {device for one, device in known if one.dim() or device != CPU} or {CPU}
        if len(heavy) > 1:
            shapes = [(tuple(one.shape), str(device)) for one, device in known]
            raise RuntimeError(f"{function.__name__} of tensors on different devices: {shapes}")
        return heavy.pop()


def spread(model: Any, devices: TwoDevices, last_of_first: int) -> None:
    """Layers up to that one on the first device, all others on the second: hooks of accelerate's move what passes."""
    parts = {"model.embed_tokens": FIRST, "model.rotary_emb": FIRST, "model.norm": SECOND, "lm_head": SECOND}
    parts |= {
        f"model.layers.{index}": FIRST if index <= last_of_first else SECOND for index in range(len(model.model.layers))
    }
    for name, device in parts.items():
        devices.put(model.get_submodule(name), device)
    for name, device in {"": FIRST, **parts}.items():
        hook = AlignDevicesHook(io_same_device=name == "")
        add_hook_to_module(model.get_submodule(name), hook)
        hook.execution_device = device  # only now: it would look for the device to put the weights there
