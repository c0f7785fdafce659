"""The rows of a comparison: each a method, with what is tried when it is tuned.

The paper's own settings are tried first, then one choice after another, each with the best of those before it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from scen_cli.baselines.catalogue import METHODS
from scen_cli.errors import UsageError

Settings = dict[str, Any]
Choices = list[list[Settings]]


@dataclass(frozen=True)
class Row:
    """A row's `method`, its own `settings`, and `choices`: at each, other settings that may take their place.
    `recipe.NAME` is a setting of SCEN's recipe."""

    name: str
    method: str
    settings: Settings = field(default_factory=dict)
    choices: Choices = field(default_factory=list)


def all_rows(decoder_layers: int) -> dict[str, Row]:
    """Every row, by name, for a base of so many decoder layers."""
    early = decoder_layers // 4  # where MEMIT's authors write: layers 4 to 8 of Llama's 32
    written: Choices = [
        [{"at": "last", "known": 150.0}, {"at": "last", "known": 15.0}, {"at": "subject", "known": 15.0}],
        [{"contexts": 1}],
        [{"decay": 0.1, "clamp": 2.0}],
        [{"layer": early}, {"layers": 2}],
        [{"known": 1.5}],
    ]
    paper: Choices = [
        [
            {"recipe.expert_lr": expert, "recipe.neuron_lr": neuron, "recipe.neuron_steps": 100}
            for expert, neuron in ((1e-3, 1e-3), (1e-2, 1e-3), (1e-2, 1e-2))
        ],
        _each("recipe.theta", 0.6, 0.7),
        [{"recipe.expert_steps": 20}],
    ]
    default: Choices = [
        _each("recipe.false_activation", 0.05, 0.002),
        [{"recipe.key_pooling": "mean"}],
        [{"recipe.subject_filter": "false"}],
        _each("recipe.prompt_augmentations", 0, 4),
        [{"recipe.rank": 8}],
    ]
    # Shorter than their authors train, who have days of a GPU for it.
    patches: Choices = [
        [{"lr": 0.05}, {"lr": 0.05, "per": "token"}],
        _each("memory", 1.0, 10.0),
        _each("activation", 10.0, 0.1),
    ]
    networks: Choices = [[{"lr": 1e-3, "scale": 1e-3, "lr_scale": 1e-3}, {"lr": 1e-4}], _each("edit_weight", 1.0, 0.01)]
    readers: Choices = [_each("lr", 1e-3, 3e-4), _each("threshold", 0.8, 0.95, 0.3)]
    rates = _each("lr", 1e-3, 1e-2, 3e-4, 3e-3)
    rows = [
        Row("scen", "scen", {}, default),
        Row("scen-paper", "scen", {"recipe": "paper"}, paper),
        Row("comeba-hk", "comeba-hk", {}, written),
        Row("melo", "melo", {}, [_each("lr", 1e-2, 3e-2), _each("rank", 4, 8), [{"batch": 1}], [{"layers": 2}]]),
        Row("grace", "grace", {}, [_each("radius", 1.0, 10.0, 30.0), _each("steps", 30, 100), [{"layer": early}]]),
        Row("ft", "ft", {}, [rates, _each("steps", 5, 20), [{"layer": early}]]),
        Row("ft-kl", "ft-kl", {}, [rates, _each("kl", 0.1, 3.0), [{"steps": 20}]]),
        Row("ft-tuned", "ft-tuned", {}, [rates, _each("epochs", 10, 40), [{"mini_batch": 64}]]),
        Row("memit", "memit", {}, written),
        Row("t-patcher", "t-patcher", {"steps": 100}, patches),
        Row("serac", "serac", {"mini_batch": 16, "steps": 400}, readers),
        Row("mend", "mend", {"rank": 64, "steps": 500}, networks),
        Row("in-context", "in-context", {}, [_each("nearness", 0.7, 0.9, 0.3)]),
        Row("ultra-edit", "ultra-edit", {}, [_each("eta", 1e-4, 1e-3, 1e-2, 3e-2), [{"layers": 2}], [{"batch": 20}]]),
    ]
    return {row.name: row for row in rows if row.method in METHODS}


def _each(name: str, *values: Any) -> list[Settings]:
    return [{name: value} for value in values]


def find_rows(names: list[str], decoder_layers: int) -> list[Row]:
    """The rows of these names, all of them if there is none. Raises `UsageError` for one that there is not."""
    known = all_rows(decoder_layers)
    for name in names:
        if name not in known:
            raise UsageError(f"there is no method `{name}`", hint=f"methods: {', '.join(known)}")
    return [known[name] for name in dict.fromkeys(names)] or list(known.values())


def with_choice(settings: Settings, choice: Settings) -> Settings:
    """Settings with one choice made."""
    recipe = {name.removeprefix("recipe."): value for name, value in choice.items() if name.startswith("recipe.")}
    rest = {name: value for name, value in choice.items() if not name.startswith("recipe.")}
    changes = {**settings.get("changes", {}), **recipe}
    return {**settings, **rest, **({"changes": changes} if changes else {})}
