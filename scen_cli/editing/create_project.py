"""Making a project: load the base once, check that it can be edited, write down what it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scen_cli.errors import UsageError
from scen_cli.model.base import DTYPES, Base, commit_of, files_stamp, load_base
from scen_cli.model.digest import digest_of
from scen_cli.model.ffn import EditedLayer, find_layer
from scen_cli.model.quantization import check_held, check_known
from scen_cli.model.template import Template, make_template
from scen_cli.neurons.build_guard import key_config_of, make_guard, reread_keys
from scen_cli.neurons.calibration import check_enough
from scen_cli.project.guard import Guard, NewGuard
from scen_cli.project.project import Project, refuse_existing
from scen_cli.project.settings import FORMAT
from scen_cli.recipe import (
    DEFAULT_RECIPE,
    DEMO_RATES,
    Recipe,
    make_recipe,
)

DEMO_LAYER = 2
DEFAULT_TEMPLATE = "[INST]{prompt}[/INST]"


def new_project(
    folder: Path | str,
    model: str,
    layer: int | None = None,
    *,
    revision: str | None = None,
    dtype: str = "auto",
    device: str = "auto",
    quantize: str | None = None,
    device_map: str | None = None,
    target_module: str = "down",
    template: str = DEFAULT_TEMPLATE,
    recipe: str | Recipe = DEFAULT_RECIPE,
    guard: Path | Guard | NewGuard | None = None,
    changes: Mapping[str, str | float | None] | None = None,
    seed: int = 0,
    base: Base | None = None,
    author: str | None = None,
) -> Project:
    """Create a project on a base and return it.

    `quantize` (`8bit`, `4bit`) and `device_map` (`auto`, ...) are how the base is loaded from now on (`load_base`).
    `target_module` says where experts sit: `down`, or for the paper's Table 3 `up` or `attn`.
    `recipe` is a name, or a recipe as it is; `changes` are settings that differ from the named one's
    (`theta`, `expert_steps`, ...). `guard` is a file of prompts that must stay the base's own, a guard made before,
    or that of another project (its keys are read anew); without one the base writes its own, if the recipe needs
    a guard.
    `author` stands beside it in the log. A local folder is remembered by its absolute path. Nothing is written if
    anything is wrong:
    raises `UsageError` for an existing project, a base that cannot be edited, or a bad setting.
    """
    asked = BaseOptions(model, layer, revision, dtype, device, target_module, template, seed, quantize, device_map)
    rates = DEMO_RATES if model == "demo" else {}
    chosen = recipe if isinstance(recipe, Recipe) else make_recipe(recipe, changes or {}, rates)
    ready = asked.load(Path(folder), base)
    key_config = key_config_of(ready.template, chosen)
    if isinstance(guard, Guard):
        guard = reread_keys(guard, ready.base, ready.template, ready.edited, key_config)
    elif not isinstance(guard, NewGuard) and (guard or chosen.needs_guard):
        guard = make_guard(ready.base, ready.template, ready.edited, key_config, seed, guard)
    if isinstance(guard, NewGuard) and chosen.false_activation is not None:
        check_enough(sum(split == "calibration" for _prompt, split, _source in guard.prompts), chosen.false_activation)
    settings = {"format": FORMAT, **ready.settings, "recipe": chosen.model_dump()}
    return Project.create(folder, settings, chosen.theta, guard if isinstance(guard, NewGuard) else None, author)


@dataclass(frozen=True)
class BaseOptions:
    """Which base a new project is to edit, and where, as it was asked for."""

    model: str
    layer: int | None = None
    revision: str | None = None
    dtype: str = "auto"
    device: str = "auto"
    target_module: str = "down"
    template: str = DEFAULT_TEMPLATE
    seed: int = 0
    quantize: str | None = None
    device_map: str | None = None

    def load(self, folder: Path, base: Base | None = None) -> CheckedBase:
        """Load the base, unless it is loaded, and check that a project in `folder` can edit it.

        Raises `UsageError` for an existing project, a base that cannot be edited, or a bad setting.
        """
        refuse_existing(folder)
        if not 0 <= self.seed < 2**32:
            raise UsageError(f"seed {self.seed} is not between 0 and {2**32 - 1}")
        layer = DEMO_LAYER if self.layer is None and self.model == "demo" else self.layer
        if layer is None:
            raise UsageError(
                "which layer to edit is required: `--layer N`",
                hint="the paper edits layer 20 of Llama-2-7B's 32 and finds layers from 16 on reliable",
            )
        if self.dtype != "auto" and self.dtype not in DTYPES:
            raise UsageError(f"dtype `{self.dtype}` is not known", hint=f"one of: auto, {', '.join(DTYPES)}")
        how = self.quantize, self.device_map
        check_known(*how)
        base = base or load_base(self.model, self.revision, self.dtype, self.device, *how)
        check_held(base.model, base.folder, self.quantize)
        edited = find_layer(base.model, layer, self.target_module)
        template = make_template(base.tokenizer, base.model, self.template)
        is_local = self.model != "demo" and Path(self.model).expanduser().is_dir()
        settings = {
            "model": str(Path(self.model).expanduser().resolve()) if is_local else self.model,
            "revision": commit_of(base.folder) or self.revision,
            "weights_digest": digest_of(base.folder),
            "files_stamp": files_stamp(base.folder),
            "layer": layer,
            "target_module": self.target_module,
            "module": edited.module_name,
            "ffn_width": edited.ffn_width,
            "dtype": self.dtype,
            "quantize": self.quantize,
            "device_map": self.device_map,
            "template": self.template,
            "seed": self.seed,
        }
        return CheckedBase(base, edited, template, settings)


@dataclass(frozen=True)
class CheckedBase:
    """A base that a project can be made on, and what the project's `settings` are to say of it."""

    base: Base
    edited: EditedLayer
    template: Template
    settings: dict[str, Any]
