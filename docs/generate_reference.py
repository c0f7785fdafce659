"""The parts of the reference that come from code: commands (Typer), recipe settings and method settings (pydantic)."""

from __future__ import annotations

import re
from typing import Any

from pydantic import BaseModel
from pydantic_core import PydanticUndefined


def commands() -> str:
    """Every command with its arguments and options, as `scen COMMAND --help` prints them, in Markdown."""
    import typer
    from typer.cli import get_docs_for_click

    from scen_cli.cli import app

    command = typer.main.get_command(app)
    page = get_docs_for_click(obj=command, ctx=typer.Context(command), indent=1, name="scen")
    return re.sub(r"^Example: (.+)$", r"Example: `\1`", page, flags=re.MULTILINE)


def recipe_settings() -> str:
    """Each setting of a recipe: its value in every recipe that uses it, and what it means."""
    from scen_cli.recipe import RECIPES, Recipe

    head = ["setting", *(f"`{name}`" for name in RECIPES), "meaning"]
    rows = []
    for name, field in Recipe.model_fields.items():
        if name != "name":
            values = [
                "" if name in recipe.unused else f"`{_shown(getattr(recipe, name))}`" for recipe in RECIPES.values()
            ]
            rows.append([f"`{name}`", *values, field.description or ""])
    return _table(head, rows)


def method_settings() -> str:
    """Each setting of each baseline, with its default."""
    from scen_cli.baselines.catalogue import METHODS

    rows = []
    for name, method in METHODS.items():
        settings: type[BaseModel] = method.settings_type
        for setting, field in settings.model_fields.items():
            default = field.get_default(call_default_factory=True)
            shown = "" if default is PydanticUndefined else f"`{_shown(default)}`"
            rows.append([f"`{name}`", f"`{setting}`", shown, field.description or ""])
    return _table(["method", "setting", "default", "meaning"], rows)


GENERATED = {"commands": commands, "recipe settings": recipe_settings, "method settings": method_settings}


def fill(page: str) -> str:
    """Replace each `<!-- generated: NAME -->` by what its function makes."""
    return re.sub(r"<!-- generated: ([\w ]+) -->", lambda match: GENERATED[match[1]](), page)


def _shown(value: Any) -> str:
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
