"""`scen init`: create a project on a base."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scen_cli.cli.loaders import HERE, Author, Device, Dir, loading
from scen_cli.cli.output import Json, Output, Quiet, table
from scen_cli.errors import UsageError

if TYPE_CHECKING:
    from scen_cli.editing.create_project import BaseOptions
    from scen_cli.model.base import Base
    from scen_cli.project.project import Project


def init(
    model: Annotated[
        str,
        typer.Option(envvar="SCEN_MODEL", help="An alias (smollm2, ...), a hub id, a folder, a GGUF file."),
    ],
    layer: Annotated[
        str | None,
        typer.Option(help="The decoder layer to edit, from 0; auto: try some.", show_default="the alias's own"),
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub id.")] = None,
    dtype: Annotated[
        str, typer.Option(help="auto (the alias's or checkpoint's own), float32, bfloat16 or float16.")
    ] = "auto",
    device: Device = "auto",
    quantize: Annotated[
        str | None, typer.Option(help="Always load the base in 8bit or 4bit (bitsandbytes). Experts stay float32.")
    ] = None,
    device_map: Annotated[
        str | None,
        typer.Option(envvar="SCEN_DEVICE_MAP", help="auto: always spread the base over all devices."),
    ] = None,
    gguf_file: Annotated[
        str | None, typer.Option(help="The GGUF file to use, of a hub id or folder that has some.")
    ] = None,
    template: Annotated[
        str | None,
        typer.Option(
            help="A string with {prompt} in it; `chat` for the tokenizer's own template; `none`.",
            show_default="[INST]{prompt}[/INST], or the alias's own",
        ),
    ] = None,
    target_module: Annotated[
        str, typer.Option(help="The projection that experts replace: down (the paper's choice), up, or attn.")
    ] = "down",
    recipe: Annotated[str, typer.Option(help="closed-form, joint, key, paper or paper-hallucination.")] = "closed-form",
    method: Annotated[
        str | None,
        typer.Option(help="Edit by another method than SCEN: comeba-hk, melo, grace, ... (`--set` its settings)."),
    ] = None,
    guard: Annotated[
        Path | None,
        typer.Option(help="Prompts that must not change, one a record. Without a file: questions of a bank."),
    ] = None,
    expert: Annotated[
        str | None, typer.Option(help="low-rank: the base's projection plus B A; full: the paper's.")
    ] = None,
    rank: Annotated[
        str | None, typer.Option(help="Of low-rank experts; auto: the lowest that learns the target with a margin.")
    ] = None,
    stop_when: Annotated[
        str | None, typer.Option(help="steps: train all steps; learned: stop when the target has a margin.")
    ] = None,
    theta: Annotated[float | None, typer.Option(help="A fixed activation threshold, not calibrated.")] = None,
    setting: Annotated[
        list[str] | None, typer.Option("--set", help="Change a recipe's setting, e.g. expert_steps=20. Repeatable.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the neurons' initial weights and of the guard.")] = 0,
    author: Author = None,
    dir: Dir = HERE,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Create a project: which base, which layer, which recipe.

    Example: scen init --model ./my-llama --layer 20 --dir facts
    """
    out = Output(as_json, quiet)
    from scen_cli.project.project import refuse_existing
    from scen_cli.recipe import make_recipe

    refuse_existing(dir)
    changes: dict[str, Any] = dict(_split(text) for text in setting or [])
    of_recipe = {"expert": expert, "rank": rank, "stop_when": stop_when}
    changes |= {name: value for name, value in of_recipe.items() if value is not None}
    if theta is not None:
        changes |= {"theta": str(theta), "false_activation": None, "same_subject": None}
    if method is None:
        make_recipe(recipe, changes)  # a wrong setting is reported before the base is loaded
    elif any(of_recipe.values()) or theta is not None or recipe != "closed-form" or target_module != "down":
        raise UsageError("`--method` has settings of its own: `--set NAME=VALUE`")
    number = _layer_number(layer, method)
    how = (model, number, revision, dtype, device, target_module, template, seed, quantize, device_map, gguf_file)
    chosen = _choose_layer(how, recipe, changes, dir, out) if layer == "auto" else None
    with loading(model, out, "guard prompts") as progress:
        from scen_cli.editing.create_project import BaseOptions, new_project

        options, base = chosen or (BaseOptions(*how), None)
        if method is not None:
            from scen_cli.baselines.method_editor import new_method_project

            project = new_method_project(dir, method, options, changes, guard, author=author, progress=progress)
        else:
            project = new_project(
                dir, options, recipe=recipe, changes=changes, guard=guard, base=base, author=author, progress=progress
            )
            _warn_of_similar_keys(project, out)
    if device_map and device != "auto":
        out.warn(f"the whole base is on `{device}` now: `--device-map` applies where `--device` is not given")
    out.result({"dir": str(dir), **project.settings}, f"project created in `{dir}`", table(("", ""), _rows(project)))
    out.note(f"next: `scen edit edits.jsonl{'' if dir == HERE else f' --dir {dir}'}`")


def _layer_number(layer: str | None, method: str | None) -> int | None:
    """The number in `--layer`; 0 for now if a trial will choose it."""
    if layer == "auto":
        if method is not None:
            raise UsageError("`--layer auto` compares experts: `--method` needs a number")
        return 0
    if layer is not None and not layer.isdecimal():
        raise UsageError(f"`--layer {layer}` is neither a number, from 0, nor `auto`")
    return None if layer is None else int(layer)


def _choose_layer(
    how: tuple[Any, ...], recipe: str, changes: dict[str, Any], folder: Path, out: Output
) -> tuple[BaseOptions, Base]:
    """Try some layers, print what each gave, and fill in the best one. Returns also the base, loaded."""
    with loading(how[0], out, "edits of the layers' trial") as progress:
        from scen_cli.editing.create_project import BaseOptions, recipe_for
        from scen_cli.studies.choose_layer import best_layer, try_layers

        options = BaseOptions(*how)
        base = options.load(folder).base
        trials = try_layers(options, recipe_for(options.model, recipe, changes), base, progress)
    layer, reason = best_layer(trials)
    shares = ((trial.reliability, trial.generality, trial.leak) for trial in trials)
    counts = [[f"{share.right}/{share.total}" for share in row] for row in shares]
    rows = [(trial.layer, *row, f"{trial.seconds:.1f}") for trial, row in zip(trials, counts, strict=True)]
    columns = ("layer#", "Reliability#", "rephrases, right expert given#", "leak: same-subject#", "s/edit#")
    out.table(table(columns, rows))
    out.note(f"layer {layer}: {reason}")
    choice = {"reason": reason, "trials": [trial.as_dict() for trial in trials]}
    return replace(options, layer=layer, layer_choice=choice), base


def _rows(project: Project) -> list[tuple[str, str]]:
    """What was created, for people."""
    from scen_cli.recipe import Recipe

    settings, recipe = project.settings, project.settings["recipe"]
    loaded = (f", in {settings['quantize']}" if settings["quantize"] else "") + (
        f", device map {settings['device_map']}" if settings["device_map"] else ""
    )
    why = ", chosen by a trial" if settings["layer_choice"] else ""
    rows = [
        ("base", settings["model"] + loaded),
        ("weights", f"sha256 {settings['weights_digest'][:16]}"),
        ("layer", f"{settings['layer']} ({settings['module']}, h = {settings['ffn_width']}){why}"),
        ("template", settings["template"]),
    ]
    if project.method:
        values = [f"{name} {value}" for name, value in recipe["settings"].items() if value is not None]
        return [
            *rows,
            ("method", f"{project.method}: {', '.join(values)}"),
            ("unedited", f"{len(project.ledger.guard())} prompts that no edit claims"),
        ]
    rows.append(("recipe", str(Recipe.model_validate(recipe))))
    if guard := project.guard():
        rows.append(("guard", f"{len(guard.prompts)} prompts of {guard.source('fit')}"))
    return rows


def _warn_of_similar_keys(project: Project, out: Output) -> None:
    from scen_cli.neurons.build_guard import ALIKE, mean_cosine

    guard = project.guard()
    recipe = project.settings["recipe"]
    plain_last = recipe["key_pooling"] == "last" and not recipe["mask_subject"]
    if guard and plain_last and (cosine := mean_cosine(guard)) > ALIKE:
        out.warn(
            f"keys of different prompts are similar here (mean cosine {cosine:.2f}): the last token of this base says "
            "little about a question; `--set key_pooling=mean` may separate edits better"
        )


def _split(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise UsageError(f"`--set {text}` has no `=`", hint="e.g. `--set expert_steps=20`")
    return name.strip(), value.strip()
