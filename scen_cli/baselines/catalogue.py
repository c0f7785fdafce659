"""All methods by name, how to create a method, and the variants of a comparison.

A variant is a method with its settings, and the settings to try when it is tuned. The variant's own settings are tried
first. Then each group of choices is tried on top of the best settings so far.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedModel

from scen_cli.baselines.comeba_hk import ComebaHK
from scen_cli.baselines.context import MethodContext
from scen_cli.baselines.grace import Grace
from scen_cli.baselines.melo import Melo
from scen_cli.baselines.memit import Memit
from scen_cli.baselines.mend import Mend
from scen_cli.baselines.method import Method, make_settings
from scen_cli.baselines.retrieval_method import InContext
from scen_cli.baselines.scen_method import Scen
from scen_cli.baselines.serac import Serac
from scen_cli.baselines.t_patcher import TPatcher
from scen_cli.baselines.weight_method import FineTuning, FineTuningKL, FineTuningTuned, UltraEdit
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


Settings = dict[str, Any]
Choices = list[list[Settings]]


@dataclass(frozen=True)
class MethodVariant:
    """A row of a comparison.

    Attributes:
        name: The row's name.
        method: A name in the catalogue.
        settings: Settings that differ from the method's defaults.
        choices: Groups of alternative changes. `recipe.NAME` is a setting of SCEN's recipe.
    """

    name: str
    method: str
    settings: Settings = field(default_factory=dict)
    choices: Choices = field(default_factory=list)


def all_variants(decoder_layers: int) -> dict[str, MethodVariant]:
    """Every variant by name, for a base with this number of decoder layers."""
    early = {"layer": decoder_layers // 4}  # where MEMIT's authors edit: layers 4 to 8 of Llama's 32
    closed_form: Choices = [
        [{"at": "last", "known": 150.0}, {"at": "last", "known": 15.0}, {"at": "subject", "known": 15.0}],
        [{"contexts": 1}],
        [{"decay": 0.1, "clamp": 2.0}],
        [early, {"layers": 2}],
        [{"known": 1.5}],
    ]
    scen_paper: Choices = [
        [
            {"recipe.expert_lr": expert, "recipe.neuron_lr": neuron, "recipe.neuron_steps": 100}
            for expert, neuron in ((1e-3, 1e-3), (1e-2, 1e-3), (1e-2, 1e-2))
        ],
        _each("recipe.theta", 0.6, 0.7),
        [{"recipe.expert_steps": 20}],
    ]
    scen: Choices = [
        _each("recipe.false_activation", 0.05, 0.002),
        [{"recipe.key_pooling": "mean"}],
        [{"recipe.subject_filter": "false"}],
        _each("recipe.prompt_augmentations", 0, 4),
        [{"recipe.rank": 8}],
    ]
    # T-Patcher, SERAC and MEND train for fewer steps than their authors, who spend days of GPU time.
    t_patcher: Choices = [
        [{"lr": 0.05}, {"lr": 0.05, "per": "token"}],
        _each("memory", 1.0, 10.0),
        _each("activation", 10.0, 0.1),
    ]
    mend: Choices = [[{"lr": 1e-3, "scale": 1e-3, "lr_scale": 1e-3}, {"lr": 1e-4}], _each("edit_weight", 1.0, 0.01)]
    serac: Choices = [_each("lr", 1e-3, 3e-4), _each("threshold", 0.8, 0.95, 0.3)]
    melo: Choices = [_each("lr", 1e-2, 3e-2), _each("rank", 4, 8), [{"batch": 1}], [{"layers": 2}]]
    ultra_edit: Choices = [_each("eta", 1e-4, 1e-3, 1e-2, 3e-2), [{"layers": 2}], [{"batch": 20}]]
    rates = _each("lr", 1e-3, 1e-2, 3e-4, 3e-3)
    variants = [
        MethodVariant("scen", "scen", {}, scen),
        MethodVariant("scen-paper", "scen", {"recipe": "paper"}, scen_paper),
        MethodVariant("comeba-hk", "comeba-hk", {}, closed_form),
        MethodVariant("melo", "melo", {}, melo),
        MethodVariant("grace", "grace", {}, [_each("radius", 1.0, 10.0, 30.0), _each("steps", 30, 100), [early]]),
        MethodVariant("ft", "ft", {}, [rates, _each("steps", 5, 20), [early]]),
        MethodVariant("ft-kl", "ft-kl", {}, [rates, _each("kl", 0.1, 3.0), [{"steps": 20}]]),
        MethodVariant("ft-tuned", "ft-tuned", {}, [rates, _each("epochs", 10, 40), [{"mini_batch": 64}]]),
        MethodVariant("memit", "memit", {}, closed_form),
        MethodVariant("t-patcher", "t-patcher", {"steps": 100}, t_patcher),
        MethodVariant("serac", "serac", {"mini_batch": 16, "steps": 400}, serac),
        MethodVariant("mend", "mend", {"rank": 64, "steps": 500}, mend),
        MethodVariant("in-context", "in-context", {}, [_each("nearness", 0.7, 0.9, 0.3)]),
        MethodVariant("ultra-edit", "ultra-edit", {}, ultra_edit),
    ]
    return {variant.name: variant for variant in variants}


def _each(name: str, *values: Any) -> list[Settings]:
    return [{name: value} for value in values]


def find_variants(names: list[str], decoder_layers: int) -> list[MethodVariant]:
    """The variants of these names, without names all of them. Raises `UsageError` for an unknown name."""
    known = all_variants(decoder_layers)
    for name in names:
        if name not in known:
            raise UsageError(f"there is no method `{name}`", hint=f"methods: {', '.join(known)}")
    return [known[name] for name in dict.fromkeys(names)] or list(known.values())


def with_choice(settings: Settings, choice: Settings) -> Settings:
    """Settings changed by one choice; `recipe.NAME` goes to the recipe's `changes`."""
    recipe = {name.removeprefix("recipe."): value for name, value in choice.items() if name.startswith("recipe.")}
    others = {name: value for name, value in choice.items() if not name.startswith("recipe.")}
    changes = {**settings.get("changes", {}), **recipe}
    return {**settings, **others, **({"changes": changes} if changes else {})}
