"""`HookMethod`: methods that change outputs of modules by forward hooks, and leave the base's weights alone."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any

from torch import Tensor, nn

from scen_cli.baselines.context import MethodContext
from scen_cli.baselines.method import Method, Settings

# What a method decided about the prompts that this thread or task is computing.
_current: ContextVar[tuple[HookMethod, Any] | None] = ContextVar("scen_baseline_decision", default=None)


class HookMethod(Method):
    """A method whose hooks act only inside `answering` or `following`, in the thread or task that entered it."""

    def __init__(self, context: MethodContext, settings: Settings) -> None:
        super().__init__(context, settings)
        self._handles: list[Any] = []

    @abstractmethod
    def hooked_modules(self) -> Sequence[nn.Module]:
        """The modules whose outputs change."""

    @abstractmethod
    def edited_output(self, index: int, hidden: Tensor, output: Tensor, decision: Any) -> Tensor | None:
        """The new output of the hooked module `index` for its input `hidden`; None keeps the base's `output`."""

    @abstractmethod
    def decide(self, ids: Tensor, mask: Tensor) -> Any:
        """Which edits apply to these prompts (rows, tokens)."""

    def attach(self) -> None:
        if not self.attached:
            self._handles = self.register_hooks()
        super().attach()

    def detach(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []
        super().detach()

    def register_hooks(self) -> list[Any]:
        modules = enumerate(self.hooked_modules())
        return [module.register_forward_hook(partial(self._hook, index)) for index, module in modules]

    def _hook(self, index: int, _module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        decision = self.current_decision()
        return None if decision is None else self.edited_output(index, args[0], output, decision)

    @contextmanager
    def answering(self, ids: Tensor, mask: Tensor) -> Iterator[None]:
        with self.following(self.decide(ids, mask) if self.attached else None):
            yield

    @contextmanager
    def following(self, decision: Any) -> Iterator[None]:
        """Inside this block the hooks follow this decision; None keeps the base's outputs."""
        token = _current.set((self, decision))
        try:
            yield
        finally:
            _current.reset(token)

    def current_decision(self) -> Any:
        """The decision of the innermost block, if that is this method's."""
        method, decision = _current.get() or (None, None)
        return decision if method is self else None


def per_row(tensor: Tensor, rows: int) -> Tensor:
    """Repeat a tensor with one entry per sequence for a batch with k consecutive rows per sequence (beams)."""
    if rows % len(tensor):
        raise ValueError(f"the batch has {rows} rows, not a multiple of its {len(tensor)} sequences")
    return tensor.repeat_interleave(rows // len(tensor), dim=0)
