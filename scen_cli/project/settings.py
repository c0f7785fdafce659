"""What a project was made with: fixed for good, kept as JSON by name in the ledger."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from scen_cli.errors import VERIFY_HINT, DamageFound, UsageError

FORMAT = 1  # of the whole folder; a newer one is refused
KINDS: dict[str, type] = {"format": int, "model": str, "layer": int, "ffn_width": int, "recipe": dict}
IF_ANY: dict[str, type] = {"quantize": str, "device_map": str}  # how the base is loaded


def check_settings(settings: dict[str, Any], ledger: Path) -> None:
    """Raise `DamageFound` for settings that are no project's, `UsageError` for those of another format."""
    if not settings:
        raise DamageFound(f"`{ledger}` holds no project", hint="restore it from a backup")
    told = {name: kind for name, kind in IF_ANY.items() if settings.get(name) is not None}
    for name, kind in {**KINDS, **told}.items():
        if type(settings.get(name)) is not kind:
            raise DamageFound(f"`{ledger}`: setting `{name}` is {settings.get(name)!r}", hint=VERIFY_HINT)
    if settings["format"] != FORMAT:
        raise UsageError(
            f"this project has format {settings['format']}; this version of scen reads format {FORMAT}",
            hint="update scen: `pip install -U scen-cli`",
        )
