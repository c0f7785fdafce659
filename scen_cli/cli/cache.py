"""`scen cache`: what scen keeps outside projects."""

from __future__ import annotations

from typing import Annotated

import typer

from scen_cli.cli.output import Json, Output, Quiet, table


def cache(
    clear: Annotated[
        bool, typer.Option("--clear", help="Remove everything; it is computed again when needed.")
    ] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """List the cache: bases converted from GGUF files, prompts that bases sampled, answers that `scen eval` scored.

    It is in the user's cache folder, or in the folder that `SCEN_CACHE` names.

    Example: scen cache
    """
    from scen_cli.data.user_cache import cache_entries, cache_folder, clear_cache

    entries = cache_entries()
    if clear:
        clear_cache()
    size = sum(entry.size for entry in entries)
    rows = [(entry.kind, entry.name, f"{entry.size / 1e6:.1f}") for entry in entries]
    summary = f"{cache_folder()}: {len(entries)} entries, {size / 1e6:.1f} MB{', removed' if clear else ''}"
    Output(as_json, quiet).result(
        {"folder": str(cache_folder()), "bytes": size, "cleared": clear, "entries": [vars(entry) for entry in entries]},
        *([table(("kind", "name", "MB#"), rows)] if rows else []),
        summary,
    )
