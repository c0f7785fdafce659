"""`scen init`: make a project on a base."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from scen_cli.cli.loaders import HERE, Author, Device, Dir, load_quietly
from scen_cli.cli.output import Json, Output, Quiet, table
from scen_cli.errors import UsageError


def init(
    model: Annotated[str, typer.Option(envvar="SCEN_MODEL", help="demo, an alias, a hub id, or a local folder.")],
    layer: Annotated[int | None, typer.Option(help="The decoder layer to edit, from 0. Required but for demo.")] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub id.")] = None,
    dtype: Annotated[str, typer.Option(help="auto (the checkpoint's own), float32, bfloat16 or float16.")] = "auto",
    device: Device = "auto",
    quantize: Annotated[
        str | None, typer.Option(help="Load the base in 8bit or 4bit from now on (bitsandbytes). Experts stay float32.")
    ] = None,
    device_map: Annotated[
        str | None,
        typer.Option(envvar="SCEN_DEVICE_MAP", help="auto: spread a base larger than one GPU over all there are."),
    ] = None,
    template: Annotated[
        str, typer.Option(help="A string with {prompt} in it; `chat` for the tokenizer's own template; `none`.")
    ] = "[INST]{prompt}[/INST]",
    target_module: Annotated[
        str, typer.Option(help="Where experts sit: down (the paper's choice), up, or attn.")
    ] = "down",
    recipe: Annotated[
        str, typer.Option(help="closed-form, joint, key, paper or paper-hallucination (see the README).")
    ] = "closed-form",
    method: Annotated[
        str | None,
        typer.Option(help="Edit by another method than SCEN: comeba-hk, melo, grace, ... (`--set` its settings)."),
    ] = None,
    guard: Annotated[
        Path | None,
        typer.Option(help="Prompts that must stay the base's own, one a record. Without a file the base writes some."),
    ] = None,
    expert: Annotated[
        str | None, typer.Option(help="low-rank: the base's projection plus a few directions; full: the paper's.")
    ] = None,
    rank: Annotated[
        str | None, typer.Option(help="A low-rank expert's; auto: the least that learns the target with a lead.")
    ] = None,
    stop_when: Annotated[
        str | None, typer.Option(help="Training ends after its steps, or when the target is learned with a lead.")
    ] = None,
    theta: Annotated[float | None, typer.Option(help="A fixed activation threshold, not calibrated.")] = None,
    setting: Annotated[
        list[str] | None, typer.Option("--set", help="Change a recipe's setting, e.g. expert_steps=20. Repeatable.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the neurons' first values.")] = 0,
    author: Author = None,
    dir: Dir = HERE,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Make a project: which base, which layer, which recipe.

    Example: scen init --model ./my-llama --layer 20 --dir facts
    """
    out = Output(as_json, quiet)
    from scen_cli.project.project import refuse_existing

    refuse_existing(dir)
    changes: dict[str, str | float | None] = dict(_split(text) for text in setting or [])
    choice = (model, layer, revision, dtype, device, target_module, template, seed, quantize, device_map)
    if method is not None:
        if expert or rank or stop_when or theta is not None or recipe != "closed-form" or target_module != "down":
            raise UsageError("`--method` has settings of its own: `--set NAME=VALUE`")
        _init_by_method(dir, method, choice, changes, guard, author, out)
        return
    asked = {"expert": expert, "rank": rank, "stop_when": stop_when}
    changes |= {name: value for name, value in asked.items() if value is not None}
    if theta is not None:
        changes |= {"theta": str(theta), "false_activation": None}
    from scen_cli.recipe import Recipe, make_recipe

    make_recipe(recipe, changes)  # a mistake is told before the base is loaded
    load_quietly(f"loading base `{model}`", out)
    from scen_cli.editing.create_project import new_project
    from scen_cli.neurons.build_guard import ALIKE, mean_cosine

    project = new_project(
        dir,
        model,
        layer,
        revision=revision,
        dtype=dtype,
        device=device,
        quantize=quantize,
        device_map=device_map,
        target_module=target_module,
        template=template,
        recipe=recipe,
        guard=guard,
        changes=changes,
        seed=seed,
        author=author,
    )
    settings = project.settings
    if device_map and device != "auto":
        out.warn(
            f"the whole base is on `{device}` now: `--device-map` counts where no `--device` (SCEN_DEVICE) is given"
        )
    held = (f", in {quantize}" if quantize else "") + (f", device map {device_map}" if device_map else "")
    rows = [
        ("base", settings["model"] + held),
        ("weights", f"sha256 {settings['weights_digest'][:16]}"),
        ("layer", f"{settings['layer']} ({settings['module']}, h = {settings['ffn_width']})"),
        ("template", settings["template"]),
        ("recipe", str(Recipe.model_validate(settings["recipe"]))),
    ]
    if kept := project.guard():
        rows.append(("guard", f"{len(kept.prompts)} prompts of {kept.source('fit')}"))
        if mean_cosine(kept) > ALIKE and settings["recipe"]["key_pooling"] == "last":
            out.warn(
                f"keys of different prompts are much alike here (mean cosine {mean_cosine(kept):.2f}): this base's last "
                "token says little of a question; `--set key_pooling=mean` may tell edits apart better"
            )
    out.result({"dir": str(dir), **settings}, f"project made in `{dir}`", table(("", ""), rows))
    out.note(f"next: `scen edit edits.jsonl{'' if dir == HERE else f' --dir {dir}'}`")


def _init_by_method(
    dir: Path,
    method: str,
    choice: tuple[Any, ...],
    changes: dict[str, Any],
    guard: Path | None,
    author: str | None,
    out: Output,
) -> None:
    load_quietly(f"loading base `{choice[0]}`", out)
    from scen_cli.baselines.method_editor import new_method_project
    from scen_cli.editing.create_project import BaseOptions

    project = new_method_project(dir, method, BaseOptions(*choice), changes, guard, author=author)
    settings = project.settings
    told = ", ".join(f"{name} {value}" for name, value in settings["recipe"]["settings"].items() if value is not None)
    rows = [
        ("base", settings["model"]),
        ("weights", f"sha256 {settings['weights_digest'][:16]}"),
        ("layer", f"{settings['layer']} ({settings['module']}, h = {settings['ffn_width']})"),
        ("template", settings["template"]),
        ("method", f"{method}: {told}"),
        ("unedited", f"{len(project.ledger.guard())} prompts that no edit claims"),
    ]
    out.result({"dir": str(dir), **settings}, f"project made in `{dir}`", table(("", ""), rows))
    out.note(f"next: `scen edit edits.jsonl{'' if dir == HERE else f' --dir {dir}'}`")


def _split(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise UsageError(f"`--set {text}` has no `=`", hint="e.g. `--set expert_steps=20`")
    return name.strip(), value.strip()
