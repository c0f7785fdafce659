"""A project's settings: fixed when it is created, stored as JSON by name in the ledger."""

from __future__ import annotations

from typing import Any

from scen_cli.errors import VERIFY_HINT, DamageFound, UsageError
from scen_cli.project.event_log import settings_of_init
from scen_cli.project.ledger import Ledger
from scen_cli.project.ledger_rows import decoded

FORMAT = 1  # of the whole folder; a newer one is refused
REQUIRED: dict[str, type] = {"format": int, "model": str, "layer": int, "ffn_width": int, "recipe": dict}
OPTIONAL: dict[str, type] = {"quantize": str, "device_map": str}  # how the base is loaded


def read_settings(ledger: Ledger) -> dict[str, Any]:
    """The settings of a project.

    Raises:
        DamageFound: They are not a project's settings, or not those that the project was created with.
        UsageError: They are those of another format.
    """
    settings = ledger.settings()
    if not settings:
        raise DamageFound("`scen.db` holds no project", hint="restore it from a backup")
    present = {name: kind for name, kind in OPTIONAL.items() if settings.get(name) is not None}
    for name, kind in {**REQUIRED, **present}.items():
        if type(settings.get(name)) is not kind:
            raise DamageFound(f"setting `{name}` in `scen.db` is {settings.get(name)!r}", hint=VERIFY_HINT)
    if settings["format"] != FORMAT:
        raise UsageError(
            f"this project has format {settings['format']}; this version of scen reads format {FORMAT}",
            hint="update scen: `pip install -U scen-cli`",
        )
    _check_against_log(ledger, settings)
    return settings


def _check_against_log(ledger: Ledger, settings: dict[str, Any]) -> None:
    """Compare the settings with the event that created the project. (Guard and state have sums of their own.)"""
    first = next(ledger.db["events"].rows_where("kind = 'init'", order_by="id", limit=1), None)
    created = settings_of_init(decoded("event 1", first["detail"])) if first else {}
    for name in sorted({*created, *settings} - {"guard", "state"}):
        if created.get(name) != settings.get(name):
            was = f"it was set to {created.get(name)!r}"
            raise DamageFound(f"setting `{name}` in `scen.db` is {settings.get(name)!r}; {was}", hint=VERIFY_HINT)
