"""Writes `docs/api.md` from the docstrings of what `import scen_cli` offers: `python docs/make_api.py`"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import scen_cli

PAGE = Path(__file__).parent / "api.md"
HEAD = """# From a program

What `import scen_cli` offers, made from its docstrings (`python docs/make_api.py`). Names that are not here may change.
[examples/](../examples) run as they stand. Everything raises `ScenError` or one of its kinds for what a user can mend;
its `hint` says how.
"""
# Of these classes the methods are listed too: what a program calls.
LISTED = {
    "Project": ("writing", "merge", "revert", "find", "close"),
    "PatchedModel": ("route", "answer", "generate", "steady", "detach", "keys"),
    "Editor": ("edit", "edit_together", "fit"),
    "MethodEditor": ("edit_batch", "answer", "revert"),
}


def page() -> str:
    """The page as it should be."""
    parts = [HEAD]
    for name in sorted(scen_cli.__all__, key=str.lower):
        if not name.startswith("_"):
            parts.append(_entry(name, getattr(scen_cli, name), "##"))
            for method in LISTED.get(name, ()):
                parts.append(_entry(f"{name}.{method}", getattr(getattr(scen_cli, name), method), "###"))
    return "\n".join(parts)


def _entry(name: str, thing: Any, level: str) -> str:
    text = inspect.cleandoc(thing.__doc__ or "")
    lines = [f"{level} `{name}`", ""]
    if not (inspect.isclass(thing) and issubclass(thing, Exception)):
        lines += ["```python", f"{name.rpartition('.')[2]}{_signature(thing)}", "```", ""]
    return "\n".join([*lines, text, ""])


def _signature(thing: Any) -> str:
    """Without `self`; annotations as they are written; of a record its fields."""
    if hasattr(thing, "model_fields"):
        told = [f"{name}{'' if field.is_required() else ' = ...'}" for name, field in thing.model_fields.items()]
        return _in_brackets(["*", *told])
    signature = inspect.signature(thing)
    told = [_parameter(one) for one in signature.parameters.values() if one.name not in ("self", "cls")]
    first_by_name = next((n for n, p in enumerate(signature.parameters.values()) if p.kind is p.KEYWORD_ONLY), None)
    if first_by_name is not None:
        told.insert(first_by_name - (len(signature.parameters) - len(told)), "*")
    result = signature.return_annotation
    ending = "" if result is inspect.Signature.empty or inspect.isclass(thing) else f" -> {_named(result)}"
    return _in_brackets(told) + ending


def _parameter(one: inspect.Parameter) -> str:
    stars = {one.VAR_POSITIONAL: "*", one.VAR_KEYWORD: "**"}.get(one.kind, "")
    told = f"{stars}{one.name}"
    if one.annotation is not one.empty:
        told += f": {_named(one.annotation)}"
    if one.default is one.empty:
        return told
    simple = one.default is None or isinstance(one.default, (str, int, float, tuple))
    return f"{told} = {one.default!r}" if simple else f"{told} = ..."


def _named(annotation: Any) -> str:
    return annotation if isinstance(annotation, str) else getattr(annotation, "__name__", str(annotation))


def _in_brackets(parts: list[str]) -> str:
    line = f"({', '.join(parts)})"
    return line if len(line) < 90 else "(\n    " + ",\n    ".join(parts) + ",\n)"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
