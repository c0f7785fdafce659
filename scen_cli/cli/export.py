"""`scen export`: a checkpoint that transformers loads without scen."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from scen_cli.cli.opening import HERE, Device, Dir, open_editor
from scen_cli.cli.output import Json, Output, Quiet


def export(
    to: Annotated[Path, typer.Option("--out", help="The folder to write; it must not exist yet, or be empty.")],
    device: Device = "auto",
    dir: Dir = HERE,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write the patched model as one folder: base, experts, neurons, routing code, tokenizer, model card.

    Example: scen export --out patched
    """
    out = Output(as_json, quiet)
    editor = open_editor(dir, device, out)
    from scen_cli.export.checkpoint import export_checkpoint

    files = export_checkpoint(editor, to)
    edits = len(editor.patch().expert_of)
    size = sum(path.stat().st_size for path in files)
    out.result(
        {"out": str(to), "edits": edits, "bytes": size, "files": [path.name for path in files]},
        f"{to}: {edits} edits, {size / 1e6:.1f} MB",
        f"load it with: AutoModelForCausalLM.from_pretrained({str(to)!r}, trust_remote_code=True)",
    )
