"""Making a project: load the base once, check that it can be edited, write down what it is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from scen_cli.editing.calibration import check_enough
from scen_cli.editing.recipe import (
    DEFAULT_RECIPE,
    DEMO_RATES,
    Recipe,
    make_recipe,
)
from scen_cli.errors import UsageError
from scen_cli.guarding import make_guard, read_anew, reading_of
from scen_cli.model.base import DTYPES, Base, commit_of, digest_of, files_stamp, load_base
from scen_cli.model.ffn import find_layer
from scen_cli.model.template import make_template
from scen_cli.project.guard import Guard, NewGuard
from scen_cli.project.project import FORMAT, Project, refuse_existing

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
    place: str = "down",
    template: str = DEFAULT_TEMPLATE,
    recipe: str | Recipe = DEFAULT_RECIPE,
    guard: Path | Guard | NewGuard | None = None,
    changes: Mapping[str, str | float | None] | None = None,
    seed: int = 0,
    base: Base | None = None,
    author: str | None = None,
) -> Project:
    """Create a project on a base and return it.

    `place` says where experts sit: `down`, or for the paper's Table 3 `up` or `attn`.
    `recipe` is a name, or a recipe as it is; `changes` are settings that differ from the named one's
    (`theta`, `expert_steps`, ...). `guard` is a file of prompts that must stay the base's own, a guard made before,
    or that of another project (its keys are read anew); without one the base writes its own, if the recipe needs
    a guard.
    `author` stands beside it in the log. A local folder is remembered by its absolute path. Nothing is written if
    anything is wrong:
    raises `UsageError` for an existing project, a base that cannot be edited, or a bad setting.
    """
    refuse_existing(Path(folder))
    if not 0 <= seed < 2**32:
        raise UsageError(f"seed {seed} is not between 0 and {2**32 - 1}")
    if layer is None:
        if model != "demo":
            raise UsageError(
                "which layer to edit is required: `--layer N`",
                hint="the paper edits layer 20 of Llama-2-7B's 32 and finds layers from 16 on reliable",
            )
        layer = DEMO_LAYER
    if dtype != "auto" and dtype not in DTYPES:
        raise UsageError(f"dtype `{dtype}` is not known", hint=f"one of: auto, {', '.join(DTYPES)}")
    rates = DEMO_RATES if model == "demo" else {}
    chosen = recipe if isinstance(recipe, Recipe) else make_recipe(recipe, changes or {}, rates)
    base = base or load_base(model, revision, dtype, device)
    edited = find_layer(base.model, layer, place)
    made = make_template(base.tokenizer, base.model, template)
    reading = reading_of(made, chosen)
    if isinstance(guard, Guard):
        guard = read_anew(guard, base, made, edited, reading)
    elif not isinstance(guard, NewGuard) and (guard or chosen.needs_guard):
        guard = make_guard(base, made, edited, reading, seed, guard)
    if isinstance(guard, NewGuard) and chosen.false_activation is not None:
        check_enough(sum(part == "calibration" for _prompt, part, _source in guard.prompts), chosen.false_activation)
    is_local = model != "demo" and Path(model).expanduser().is_dir()
    settings = {
        "format": FORMAT,
        "model": str(Path(model).expanduser().resolve()) if is_local else model,
        "revision": commit_of(base.folder) or revision,
        "weights_digest": digest_of(base.folder),
        "files_stamp": files_stamp(base.folder),
        "layer": layer,
        "place": place,
        "module": edited.module_name,
        "ffn_width": edited.ffn_width,
        "dtype": dtype,
        "template": template,
        "recipe": chosen.model_dump(),
        "seed": seed,
    }
    return Project.create(folder, settings, chosen.theta, guard if isinstance(guard, NewGuard) else None, author)
