"""Create a project: load the base, check that it can be edited, and record what it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scen_cli.errors import UsageError
from scen_cli.model.base import DTYPES, Base, commit_of, files_stamp, load_base, pick_device
from scen_cli.model.chat_template import date_for
from scen_cli.model.check_finite import check_finite
from scen_cli.model.digest import digest_of
from scen_cli.model.ffn import EditedLayer, find_layer
from scen_cli.model.generation import Progress, no_progress
from scen_cli.model.gguf_base import source_of
from scen_cli.model.known_bases import KNOWN, KnownBase
from scen_cli.model.quantization import check_known, check_loaded_as
from scen_cli.model.template import Template, make_template
from scen_cli.neurons.build_guard import key_config_of, make_guard, reread_keys, with_whitening
from scen_cli.neurons.calibration import check_enough
from scen_cli.neurons.relation_keys import relation_keys
from scen_cli.project.guard import Guard, NewGuard
from scen_cli.project.ledger_queries import FORMAT
from scen_cli.project.project import Project, refuse_existing
from scen_cli.recipe import DEFAULT_RECIPE, DEMO_CLOSED_FORM, DEMO_RATES, Recipe, make_recipe


@dataclass(frozen=True)
class CheckedBase:
    """A base that can be edited, and the settings of a project on it."""

    base: Base
    edited: EditedLayer
    template: Template
    settings: dict[str, Any]


@dataclass(frozen=True)
class BaseOptions:
    """Which base a new project edits, and where.

    Attributes:
        model: An alias, a hub id, a local folder or a local GGUF file.
        layer: The decoder layer, from 0; None: the alias's own, if it has one.
        revision: Branch, tag or commit of a hub id.
        dtype: `auto` (the alias's or the checkpoint's own), `float32`, `bfloat16` or `float16`.
        device: `auto`, `cuda`, `mps` or `cpu`.
        target_module: The projection that experts replace: `down` (the paper's), or for Table 3 `up` or `attn`.
        template: A string with `{prompt}` in it, `chat` (the tokenizer's template) or `none`; None: the alias's own.
        seed: Seed of the neurons' initial weights and of the guard.
        quantize: `8bit` or `4bit`: how the base is always loaded.
        device_map: `auto`: the base is always spread over all devices.
        gguf_file: The GGUF file to use, in a folder or hub repository that has some.
        layer_choice: Why this layer, if a trial of some layers chose it: the `reason` and the `trials`.
    """

    model: str
    layer: int | None = None
    revision: str | None = None
    dtype: str = "auto"
    device: str = "auto"
    target_module: str = "down"
    template: str | None = None
    seed: int = 0
    quantize: str | None = None
    device_map: str | None = None
    gguf_file: str | None = None
    layer_choice: dict[str, Any] | None = None

    def load(self, folder: Path, base: Base | None = None) -> CheckedBase:
        """Load the base, unless `base` is given, and check that a project in `folder` can edit it.

        Raises:
            UsageError: The folder holds a project, the base cannot be edited, or an option is not valid.
        """
        refuse_existing(folder)
        if not 0 <= self.seed < 2**32:
            raise UsageError(f"seed {self.seed} is not between 0 and {2**32 - 1}")
        known = KNOWN.get(self.model, KnownBase())
        layer = known.layer if self.layer is None else self.layer
        if layer is None:
            raise UsageError(
                "the layer to edit is required: `--layer N`",
                hint="`--layer auto` tries some; the paper edits layer 20 of Llama-2-7B's 32",
            )
        if self.dtype != "auto" and self.dtype not in DTYPES:
            raise UsageError(f"dtype `{self.dtype}` is not known", hint=f"one of: auto, {', '.join(DTYPES)}")
        check_known(self.quantize, self.device_map)
        dtype = known.dtype(pick_device(self.device)) if self.dtype == "auto" else self.dtype
        how = (dtype, self.device, self.quantize, self.device_map, self.gguf_file)
        base = base or load_base(self.model, self.revision, *how)
        check_loaded_as(base.model, base.folder, self.quantize)
        check_finite(self.model, base)
        edited = find_layer(base.model, layer, self.target_module)
        form = self.template or known.template
        day = date_for(base.tokenizer, form)
        template = make_template(base.tokenizer, base.model, form, day)
        is_local = self.model not in KNOWN and Path(self.model).expanduser().exists()
        source = source_of(base.folder)
        settings = {
            "model": str(Path(self.model).expanduser().resolve()) if is_local else self.model,
            "revision": commit_of(base.folder) or self.revision,
            "weights_digest": digest_of(base.folder),
            "files_stamp": files_stamp(base.folder),
            "layer": layer,
            "layer_choice": self.layer_choice,
            "target_module": self.target_module,
            "module": edited.module_name,
            "ffn_width": edited.ffn_width,
            "dtype": dtype,
            "quantize": self.quantize,
            "device_map": self.device_map,
            "gguf_file": self.gguf_file,
            "gguf_sha256": source.sha256 if source else None,
            "template": form,
            "template_date": day,
            "seed": self.seed,
        }
        return CheckedBase(base, edited, template, settings)


def recipe_for(model: str, name: str, changes: Mapping[str, str | float | None]) -> Recipe:
    """A named recipe with changed settings, and with the settings that the base needs. Raises `UsageError` as
    `make_recipe` does."""
    if model == "demo":
        return make_recipe(name, changes, DEMO_RATES | (DEMO_CLOSED_FORM if name == "closed-form" else {}))
    key_layer = KNOWN.get(model, KnownBase()).key_layer if name == "closed-form" else None
    return make_recipe(name, changes, {"key_layer": key_layer})


def new_project(
    folder: Path | str,
    model: str | BaseOptions,
    layer: int | None = None,
    *,
    recipe: str | Recipe = DEFAULT_RECIPE,
    changes: Mapping[str, str | float | None] | None = None,
    guard: Path | Guard | NewGuard | None = None,
    base: Base | None = None,
    author: str | None = None,
    progress: Progress = no_progress,
    **base_options: Any,
) -> Project:
    """Create a project that edits a base by SCEN.

    Args:
        folder: The project's folder.
        model: The base: a name or folder, or all of its options.
        layer: The decoder layer to edit, from 0. Required, except for `demo`.
        recipe: Name of a recipe, or a recipe.
        changes: Settings that differ from the named recipe's (`theta`, `expert_steps`, ...).
        guard: A file of prompts that must not change, or the guard of another project (its keys are read again). None:
            the base samples prompts, if the recipe needs a guard.
        base: The base, if it is loaded already.
        author: Recorded in the log.
        progress: Called with the number of guard prompts that are done, first sampled, then read, and of all.
        **base_options: Further fields of `BaseOptions`.

    Returns:
        The project. A local base is recorded by its absolute path.

    Raises:
        UsageError: The folder holds a project, the base cannot be edited, or a setting is not valid. Nothing is
            written then.
    """
    options = model if isinstance(model, BaseOptions) else BaseOptions(model, layer, **base_options)
    chosen = recipe if isinstance(recipe, Recipe) else recipe_for(options.model, recipe, changes or {})
    checked = options.load(Path(folder), base)
    layer, target_module = checked.settings["layer"], checked.settings["target_module"]
    edited = find_layer(checked.base.model, layer, target_module, chosen.key_layer)
    key_config = key_config_of(checked.template, chosen)
    if isinstance(guard, Guard):
        guard = reread_keys(guard, checked.base, checked.template, edited, key_config)
    elif not isinstance(guard, NewGuard) and (guard or chosen.needs_guard):
        guard = make_guard(checked.base, checked.template, edited, key_config, options.seed, guard, progress)
    if isinstance(guard, NewGuard) and chosen.false_activation is not None:
        check_enough(sum(split == "calibration" for _prompt, split, _source in guard.prompts), chosen.false_activation)
    if isinstance(guard, NewGuard) and chosen.masks_subjects:
        relations = relation_keys(checked.base, checked.template, edited, key_config, progress)
        guard = with_whitening(guard, relations.whitening())
        if chosen.same_subject is not None:
            theta = max(chosen.theta, relations.theta(chosen.same_subject))
            chosen = chosen.model_copy(update={"theta": theta})
    settings = {"format": FORMAT, **checked.settings, "recipe": chosen.model_dump()}
    return Project.create(folder, settings, chosen.theta, guard if isinstance(guard, NewGuard) else None, author)
