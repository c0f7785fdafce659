"""Every method there is, by name, and how one is made."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedModel

from scen_cli.baselines import (
    comeba_hk,
    fine_tuning,
    grace,
    in_context,
    melo,
    memit,
    mend,
    scen_method,
    serac,
    t_patcher,
    ultra_edit,
)
from scen_cli.baselines.method import Method, MethodContext, make_settings
from scen_cli.errors import UsageError
from scen_cli.model.quantization import is_whole

_FILES = (scen_method, comeba_hk, melo, grace, fine_tuning, memit, in_context, ultra_edit, t_patcher, serac, mend)
METHODS: dict[str, type[Method]] = {method.name: method for file in _FILES for method in file.METHODS}


def find_method(name: str) -> type[Method]:
    """Raises `UsageError` for a method that there is not."""
    if name not in METHODS:
        raise UsageError(f"there is no method `{name}`", hint=f"methods: {', '.join(METHODS)}")
    return METHODS[name]


def check_base(name: str, model: PreTrainedModel) -> None:
    """Raise `UsageError` if a method cannot edit such a base."""
    whole = is_whole(model) and len({one.device for one in model.parameters()}) == 1
    if not whole and not find_method(name).any_base:
        raise UsageError(
            f"`{name}` needs a base that is whole on one device: this one is quantised or spread",
            hint="SCEN itself edits it",
        )


def make_method(name: str, given: MethodContext, changes: dict[str, Any] | None = None) -> Method:
    """A method, new, with some of its settings changed. Raises `UsageError` for one that cannot be, or not on this
    base."""
    method = find_method(name)
    check_base(name, given.base.model)
    return method(given, make_settings(method.settings_type, changes or {}))


def ready_method(name: str, given: MethodContext, changes: dict[str, Any] | None = None) -> Method:
    """The same, prepared for its first edit."""
    method = make_method(name, given, changes)
    method.prepare()
    return method
