"""All methods by name, and how to create a method."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedModel

from scen_cli.baselines.comeba_hk import ComebaHK
from scen_cli.baselines.context import MethodContext
from scen_cli.baselines.fine_tuning import FineTuning, FineTuningKL, FineTuningTuned
from scen_cli.baselines.grace import Grace
from scen_cli.baselines.in_context import InContext
from scen_cli.baselines.melo import Melo
from scen_cli.baselines.memit import Memit
from scen_cli.baselines.mend import Mend
from scen_cli.baselines.method import Method, make_settings
from scen_cli.baselines.scen_method import Scen
from scen_cli.baselines.serac import Serac
from scen_cli.baselines.t_patcher import TPatcher
from scen_cli.baselines.ultra_edit import UltraEdit
from scen_cli.errors import UsageError
from scen_cli.model.quantization import is_whole

_FINE_TUNING = (FineTuning, FineTuningKL, FineTuningTuned)
_CLASSES = (Scen, ComebaHK, Melo, Grace, *_FINE_TUNING, Memit, InContext, UltraEdit, TPatcher, Serac, Mend)
METHODS: dict[str, type[Method]] = {method.name: method for method in _CLASSES}


def find_method(name: str) -> type[Method]:
    """Raises `UsageError` for an unknown name."""
    if name not in METHODS:
        raise UsageError(f"there is no method `{name}`", hint=f"methods: {', '.join(METHODS)}")
    return METHODS[name]


def check_base(name: str, model: PreTrainedModel) -> None:
    """Raise `UsageError` if a method cannot edit this base."""
    whole = is_whole(model) and len({parameter.device for parameter in model.parameters()}) == 1
    if not whole and not find_method(name).any_base:
        raise UsageError(
            f"`{name}` needs an unquantised base on one device",
            hint="SCEN itself edits quantised bases, and bases on several devices",
        )


def make_method(name: str, context: MethodContext, changes: Mapping[str, Any] | None = None) -> Method:
    """A new method with some settings changed, for `load` or `prepare`. Raises `UsageError` for an unknown name, an
    invalid setting, or a base that the method cannot edit."""
    method = find_method(name)
    check_base(name, context.base.model)
    return method(context, make_settings(method.settings_type, changes or {}))


def prepared_method(name: str, context: MethodContext, changes: Mapping[str, Any] | None = None) -> Method:
    """`make_method`, then `prepare`: ready for its first edit."""
    method = make_method(name, context, changes)
    method.prepare()
    return method
