"""What a report says of a project, as plain data: from the ledger alone, without the base."""

from __future__ import annotations

from collections import Counter
from statistics import median
from typing import Any

from scen_cli._version import __version__
from scen_cli.project.ledger_rows import Edit
from scen_cli.project.project import Project
from scen_cli.recipe import Recipe

CONFUSIONS = 15  # of the edits that take most prompts of others

# Section, what it means, and the figures in it: by name, or by what stands before the slash.
SECTIONS = [
    (
        "The paper's figures",
        "Exact match of generated answers after the last edit. Reliability: the edit's prompt. Generality: its "
        "rephrases. Locality: prompts never edited are answered as the base answers them.",
        ("reliability", "generality", "locality", "generality-given-expert"),
    ),
    ("Portability", "Questions whose answers follow from the edit.", ("portability/",)),
    ("Near-miss locality", "Prompts beside the edit: the base's answer is wanted.", ("near-miss/",)),
    ("Robustness", "The edit's own prompt, otherwise put: its target is wanted.", ("robustness/",)),
    (
        "Drift",
        "Prompts never edited: output changed at all, and KL divergence of the next token in nats.",
        ("drift-changed", "drift-kl"),
    ),
    (
        "Teacher-forced token accuracy",
        "Not generation: each token is given the right ones before it.",
        ("token-accuracy",),
    ),
    (
        "Perplexity",
        "Mean over samples, routed once at the last token of the passage; lower is better.",
        ("wikibio-e", "wikibio-a", "openwebtext", "wikibio-e-given-expert"),
    ),
]


def gather(project: Project) -> dict[str, Any]:
    """Base, settings, edits, costs, and the newest evaluation of each suite, marked if edits changed since."""
    ledger, settings = project.ledger, project.settings
    edits = ledger.edits()
    newest = {row["suite"]: row for row in ledger.evaluations()}
    return {
        "version": __version__,
        "settings": settings,
        "theta": ledger.theta(),
        "recipe": _recipe(project),
        "states": dict(Counter(edit.state for edit in edits)),
        "edits": edits,
        "costs": _costs(edits, settings),
        "evaluations": [_evaluation(row, edits, ledger.last_change()) for row in newest.values()],
    }


def _recipe(project: Project) -> str:
    """The recipe, or the method, with its settings."""
    recipe = project.settings["recipe"]
    if project.method:
        return ", ".join([project.method, *(f"{name} {value}" for name, value in recipe["settings"].items())])
    return str(Recipe.model_validate({**recipe, "theta": project.ledger.theta()}))


def _evaluation(row: dict[str, Any], edits: list[Edit], last_change: int) -> dict[str, Any]:
    metrics = row["metrics"]
    sections = []
    for title, about, wanted in SECTIONS:
        found = {
            name.split("/")[-1]: figure
            for name, figure in metrics["figures"].items()
            if any(name == one or (one.endswith("/") and name.startswith(one)) for one in wanted)
        }
        if found:
            sections.append({"title": title, "about": about, "figures": found})
    prompts = {edit.id: edit.prompt for edit in edits}
    curves = metrics.get("curves", {})
    confusions = [
        {**one, "prompt": prompts.get(one["edit"], ""), "of_prompt": prompts.get(one["of"], "never edited")}
        for one in curves.get("confusions", [])[:CONFUSIONS]
    ]
    return {
        "id": row["id"],
        "suite": row["suite"],
        "created": f"{row['created'][:16].replace('T', ' ')} UTC",
        "current": row["last_change"] == last_change,
        "metrics": metrics,
        "sections": sections,
        "curves": curves,
        "confusions": confusions,
        "confused": sum(one["prompts"] for one in curves.get("confusions", [])),
    }


def _costs(edits: list[Edit], settings: dict[str, Any]) -> list[tuple[str, str]]:
    """What the edits took and take: (what, how much)."""
    files = {edit.file: edit.size or 0 for edit in edits if edit.file}
    if not edits:
        return []
    seconds = [edit.seconds for edit in edits]
    lines = [
        ("seconds to train an edit", f"{median(seconds):.3g} (median; {min(seconds):.3g} to {max(seconds):.3g})"),
        ("seconds in all", f"{sum(seconds):.1f}"),
    ]
    if files:
        size = sum(files.values())
        lines += [
            ("bytes of an edit", f"{size / sum(bool(edit.file) for edit in edits):,.0f}"),
            ("bytes in all", f"{size:,}"),
            ("width of a key (h)", f"{settings['ffn_width']:,}"),
        ]
    return lines
