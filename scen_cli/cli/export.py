"""`scen export`: the patched model as a folder that others load."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from scen_cli.cli.opening import HERE, Device, Dir, open_editor
from scen_cli.cli.output import Json, Output, Quiet
from scen_cli.errors import UsageError


def export(
    to: Annotated[Path, typer.Option("--out", help="The folder to write; it must not exist yet, or be empty.")],
    patch_only: Annotated[
        bool, typer.Option("--patch-only", help="Without the base's weights: fetched, and checked, as it is loaded.")
    ] = False,
    peft: Annotated[bool, typer.Option("--peft", help="A LoRA for each edit, and the router, for PEFT.")] = False,
    dtype: Annotated[
        str | None, typer.Option(help="Cast the base's weights: float32, bfloat16 or float16.", show_default="as is")
    ] = None,
    max_shard_size: Annotated[str, typer.Option(help="The largest file of weights: 500MB, 5GB.")] = "1GB",
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
    if peft and (patch_only or dtype):
        raise UsageError("`--peft` writes no weights of the base: `--patch-only` and `--dtype` have no use with it")
    editor = open_editor(dir, device, out)
    if peft:
        from scen_cli.export.adapters import export_adapters

        files = export_adapters(editor, to, license=license)
        use = f"each edit's LoRA is a folder there; {to / 'router.json'} says how a prompt finds its own"
    else:
        from scen_cli.export.checkpoint import export_checkpoint

        files = export_checkpoint(
            editor, to, patch_only=patch_only, dtype=dtype, max_shard_size=max_shard_size, license=license
        )
        use = f"load it with: AutoModelForCausalLM.from_pretrained({str(to)!r}, trust_remote_code=True)"
    edits, size = len(editor.patch().expert_of), sum(path.stat().st_size for path in files)
    out.result(
        {"out": str(to), "edits": edits, "bytes": size, "files": [str(p.relative_to(to.resolve())) for p in files]},
        f"{to}: {edits} edits, {size / 1e6:.1f} MB",
        use,
    )
