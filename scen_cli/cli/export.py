"""`scen export`: the edited model as a folder that other programs load."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scen_cli.cli.loaders import HERE, Device, Dir, open_editor
from scen_cli.cli.output import Json, Output, Quiet
from scen_cli.errors import UsageError

if TYPE_CHECKING:
    from scen_cli.editing.editor import Editor
    from scen_cli.evaluation.gates import Gate


def export(
    to: Annotated[Path, typer.Option("--out", help="The folder to write; it must not exist, or be empty.")],
    patch_only: Annotated[
        bool, typer.Option("--patch-only", help="Without the base's weights: they are fetched and checked when loaded.")
    ] = False,
    peft: Annotated[bool, typer.Option("--peft", help="A LoRA adapter for each edit, and the router.")] = False,
    merge: Annotated[
        bool,
        typer.Option("--merge-into-weights", help="One plain checkpoint without routing; scored before it is written."),
    ] = False,
    edit: Annotated[int | None, typer.Option(help="With --merge-into-weights: only this edit, exactly.")] = None,
    gate: Annotated[
        list[str] | None,
        typer.Option(help="With --merge-into-weights: a figure that must hold, e.g. 'locality>=0.9'. Repeatable."),
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="Cast the base's weights: float32, bfloat16 or float16.", show_default="as is")
    ] = None,
    max_shard_size: Annotated[
        str | None, typer.Option(help="The largest file of weights: 500MB, 5GB.", show_default="1GB")
    ] = None,
    license: Annotated[str | None, typer.Option(help="The edits' licence, for the model card: cc0-1.0, mit.")] = None,
    device: Device = "auto",
    dir: Dir = HERE,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write the edited model to one folder: base, experts, neurons, routing code, tokenizer, model card.

    Example: scen export --out patched

    Example: scen export --out patch --patch-only
    """
    out = Output(as_json, quiet)
    if patch_only + peft + merge > 1:
        raise UsageError("give one of `--patch-only`, `--peft` and `--merge-into-weights`")
    if (patch_only or peft) and (dtype or max_shard_size):
        raise UsageError("`--dtype` and `--max-shard-size` are for the base's weights: none are written")
    gates = _merge_gates(merge, edit, gate or [], dtype)
    editor = open_editor(dir, device, out)
    from scen_cli.export.transformers_folder import MAX_SHARD_SIZE

    weights = {"max_shard_size": max_shard_size or MAX_SHARD_SIZE, "license": license}
    result: dict[str, Any] = {}
    with out.working(f"writing `{to}`"):
        if merge:
            options = {"edit": edit, "gates": gates, "progress": out.note, **weights}
            paths, usage, result = _export_merged(editor, to, options)
        elif peft:
            paths, usage = _export_adapters(editor, to, license)
        else:
            paths, usage = _export_checkpoint(editor, to, {"patch_only": patch_only, "dtype": dtype, **weights})
    edits = 1 if edit is not None else len(editor.patch().expert_of)
    size = sum(path.stat().st_size for path in paths)
    files = [str(path.relative_to(to.resolve())) for path in paths]
    out.result(
        {"out": str(to), "edits": edits, "bytes": size, "files": files, **result},
        f"{to}: {edits} edits, {size / 1e6:.1f} MB",
        usage,
    )


def _merge_gates(merge: bool, edit: int | None, texts: list[str], dtype: str | None) -> list[Gate]:
    """The gates of a merged checkpoint. Raises `UsageError` for options that do not go together."""
    if merge and dtype:
        raise UsageError("a merged checkpoint is scored in the project's dtype", hint="`scen init --dtype` sets it")
    if (edit is not None or texts) and not merge:
        raise UsageError("`--edit` and `--gate` go with `--merge-into-weights`")
    from scen_cli.evaluation.gates import PAPER, check_gates, parse_gates

    gates = parse_gates(texts)
    check_gates(gates, PAPER[:3])
    return gates


def _export_checkpoint(editor: Editor, to: Path, options: dict[str, Any]) -> tuple[list[Path], str]:
    """The files, and how to use them."""
    from scen_cli.export.transformers_folder import export_checkpoint

    usage = f"load it with: AutoModelForCausalLM.from_pretrained({str(to)!r}, trust_remote_code=True)"
    return export_checkpoint(editor, to, **options), usage


def _export_adapters(editor: Editor, to: Path, license: str | None) -> tuple[list[Path], str]:
    from scen_cli.export.peft_folder import export_adapters

    usage = f"each edit's LoRA is a folder in it; {to / 'router.json'} describes how a prompt is routed to its edit"
    return export_adapters(editor, to, license=license), usage


def _export_merged(editor: Editor, to: Path, options: dict[str, Any]) -> tuple[list[Path], str, dict[str, Any]]:
    """The files, how to use them, and the figures of the merged and of the routed model."""
    from scen_cli.export.merged_checkpoint import export_merged, figure_lines

    files, folded = export_merged(editor, to, **options)
    figures = {
        "lambda": folded.ridge_lambda,
        "figures": {name: figure.as_dict() for name, figure in folded.figures.items()},
        "routed": {name: figure.as_dict() for name, figure in folded.routed.items()},
    }
    usage = f"load it with: AutoModelForCausalLM.from_pretrained({str(to)!r})"
    return files, "\n".join([*figure_lines(folded), usage]), figures
