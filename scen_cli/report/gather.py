"""Collects the data of a report from the ledger. The base is not loaded."""

from __future__ import annotations

from collections import Counter
from statistics import median
from typing import Any

from scen_cli._version import __version__
from scen_cli.project.ledger_rows import Edit
from scen_cli.project.project import Project
from scen_cli.recipe import Recipe

MAX_CONFUSIONS = 15

# Title, description, and the figures of each section. A name that ends in a slash is a prefix.
SECTIONS = [
    (
        "Figures of the paper",
        "Generated answers after the last edit, exact match. Reliability: the prompts of the edits. Generality: their "
        "rephrases. Locality: on unedited prompts, the answer of the base counts as right.",
        ("reliability", "generality", "locality", "generality-given-expert"),
    ),
    (
        "The target inside the answer",
        "For models that answer in sentences. Runs on: more words follow the target. Leak: the target of an activated "
        "edit, in an answer that should not have it.",
        ("reliability-contains", "reliability-runs-on", "generality-contains", "generality-runs-on", "leak/"),
    ),
    ("Portability", "Questions whose answers follow from the edit.", ("portability/",)),
    ("Near-miss locality", "Prompts similar to the edit: the answer of the base counts as right.", ("near-miss/",)),
    ("Robustness", "Variants of the edit's prompt: the target counts as right.", ("robustness/",)),
    (
        "Drift",
        "Unedited prompts: the share whose output changed, and the KL divergence of the next token in nats.",
        ("drift-changed", "drift-kl"),
    ),
    (
        "Teacher-forced token accuracy",
        "Not generated: each token is predicted from the right tokens before it.",
        ("token-accuracy",),
    ),
    (
        "Perplexity",
        "Mean over samples, routed once at the last token of the passage. Lower is better.",
        ("wikibio-e", "wikibio-a", "openwebtext", "wikibio-e-given-expert"),
    ),
]


def gather(project: Project) -> dict[str, Any]:
    """Settings, edits, costs, and the newest evaluation of each suite. `current` is false if edits changed since."""
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
    """The recipe with its settings, or the method with its settings."""
    recipe = project.settings["recipe"]
    if project.method:
        return ", ".join([project.method, *(f"{name} {value}" for name, value in recipe["settings"].items())])
    return str(Recipe.model_validate({**recipe, "theta": project.ledger.theta()}))


def _evaluation(row: dict[str, Any], edits: list[Edit], last_change: int) -> dict[str, Any]:
    metrics = row["metrics"]
    curves = metrics.get("curves", {})
    prompts = {edit.id: edit.prompt for edit in edits}
    confusions = curves.get("confusions", [])
    return {
        "id": row["id"],
        "suite": row["suite"],
        "created": f"{row['created'][:16].replace('T', ' ')} UTC",
        "current": row["last_change"] == last_change,
        "metrics": metrics,
        "sections": _sections(metrics["figures"]),
        "curves": curves,
        "confusions": [
            {**pair, "prompt": prompts.get(pair["edit"], ""), "of_prompt": prompts.get(pair["of"], "unedited")}
            for pair in confusions[:MAX_CONFUSIONS]
        ],
        "confused_prompts": sum(pair["prompts"] for pair in confusions),
    }


def _sections(figures: dict[str, Any]) -> list[dict[str, Any]]:
    sections = []
    for title, description, names in SECTIONS:
        in_section = {
            name.split("/")[-1]: figure
            for name, figure in figures.items()
            if name in names or name.startswith(tuple(prefix for prefix in names if prefix.endswith("/")))
        }
        if in_section:
            sections.append({"title": title, "description": description, "figures": in_section})
    return sections


def _costs(edits: list[Edit], settings: dict[str, Any]) -> list[tuple[str, str]]:
    """Times and sizes of the edits: (name, value)."""
    if not edits:
        return []
    seconds = [edit.seconds for edit in edits]
    costs = [
        ("seconds per edit", f"{median(seconds):.3g} (median; {min(seconds):.3g} to {max(seconds):.3g})"),
        ("seconds in total", f"{sum(seconds):.1f}"),
    ]
    if sizes := {edit.file: edit.size or 0 for edit in edits if edit.file}:  # edits can share a file
        size = sum(sizes.values())
        costs += [
            ("bytes per edit", f"{size / sum(bool(edit.file) for edit in edits):,.0f}"),
            ("bytes in total", f"{size:,}"),
            ("width of a key (h)", f"{settings['ffn_width']:,}"),
        ]
    return costs
