"""`scen export`: the patched model as a folder that others load."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scen_cli.cli.loaders import HERE, Device, Dir, open_editor
from scen_cli.cli.output import Json, Output, Quiet
from scen_cli.errors import UsageError

if TYPE_CHECKING:
    from scen_cli.editing.editor import Editor


def export(
    to: Annotated[Path, typer.Option("--out", help="The folder to write; it must not exist yet, or be empty.")],
    patch_only: Annotated[
        bool, typer.Option("--patch-only", help="Without the base's weights: fetched, and checked, as it is loaded.")
    ] = False,
    peft: Annotated[bool, typer.Option("--peft", help="A LoRA for each edit, and the router, for PEFT.")] = False,
    merge: Annotated[
        bool,
        typer.Option("--merge-into-weights", help="One plain checkpoint without routing: scored before it is written."),
    ] = False,
    edit: Annotated[int | None, typer.Option(help="With --merge-into-weights: this edit alone, exactly.")] = None,
    gate: Annotated[
        list[str] | None,
        typer.Option(help="With --merge-into-weights: write nothing unless it holds, 'locality>=0.9'. Repeatable."),
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
    """Write the patched model as one folder: base, experts, neurons, routing code, tokenizer, model card.

    Example: scen export --out patched

    Example: scen export --out patch --patch-only
    """
    out = Output(as_json, quiet)
    if patch_only + peft + merge > 1:
        raise UsageError("give one of `--patch-only`, `--peft` and `--merge-into-weights`")
    if (patch_only or peft) and (dtype or max_shard_size):
        raise UsageError("`--dtype` and `--max-shard-size` are for the base's weights: none are written")
    if merge and dtype:
        raise UsageError("what is merged is scored in the project's dtype", hint="`scen init --dtype` sets it")
    if (edit is not None or gate) and not merge:
        raise UsageError("`--edit` and `--gate` go with `--merge-into-weights`")
    from scen_cli.evaluation.gates import PAPER, check_gates, parse_gates

    gates = parse_gates(gate or [])
    check_gates(gates, PAPER[:3])
    editor = open_editor(dir, device, out)
    from scen_cli.export.transformers_folder import MAX_SHARD_SIZE

    weights = {"max_shard_size": max_shard_size or MAX_SHARD_SIZE, "license": license}
    if merge:
        written = _merged(editor, to, {"edit": edit, "gates": gates, "progress": out.note, **weights})
    elif peft:
        written = _adapters(editor, to, license)
    else:
        written = _checkpoint(editor, to, {"patch_only": patch_only, "dtype": dtype, **weights})
    edits = 1 if edit is not None else len(editor.patch().expert_of)
    size = sum(path.stat().st_size for path in written.files)
    files = [str(path.relative_to(to.resolve())) for path in written.files]
    out.result(
        {"out": str(to), "edits": edits, "bytes": size, "files": files, **written.more},
        f"{to}: {edits} edits, {size / 1e6:.1f} MB",
        written.use,
    )


@dataclass(frozen=True)
class _Written:
    """The files, how they are used, and what else there is to tell."""

    files: list[Path]
    use: str
    more: dict[str, Any] = field(default_factory=dict)


def _checkpoint(editor: Editor, to: Path, how: dict[str, Any]) -> _Written:
    from scen_cli.export.transformers_folder import export_checkpoint

    use = f"load it with: AutoModelForCausalLM.from_pretrained({str(to)!r}, trust_remote_code=True)"
    return _Written(export_checkpoint(editor, to, **how), use)


def _adapters(editor: Editor, to: Path, license: str | None) -> _Written:
    from scen_cli.export.peft_folder import export_adapters

    use = f"each edit's LoRA is a folder there; {to / 'router.json'} says how a prompt finds its own"
    return _Written(export_adapters(editor, to, license=license), use)


def _merged(editor: Editor, to: Path, how: dict[str, Any]) -> _Written:
    from scen_cli.export.merged_checkpoint import export_merged, figure_lines

    files, folded = export_merged(editor, to, **how)
    more = {
        "lambda": folded.ridge_lambda,
        "figures": {name: figure.as_dict() for name, figure in folded.figures.items()},
        "routed": {name: figure.as_dict() for name, figure in folded.routed.items()},
    }
    use = "\n".join([*figure_lines(folded), f"load it with: AutoModelForCausalLM.from_pretrained({str(to)!r})"])
    return _Written(files, use, more)
