"""The paper's tables and figures: the project variants that each compares, the rows it reports, and their files."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scen_cli.data.suites import Passages
from scen_cli.data.write_files import whole_file, write_json
from scen_cli.evaluation.cached_generator import CachedGenerator
from scen_cli.evaluation.curves import activation_map
from scen_cli.evaluation.evaluate_project import sweep_theta
from scen_cli.evaluation.evaluation import DECODING
from scen_cli.evaluation.hallucination import evaluate_perplexity
from scen_cli.evaluation.samples import PAPER_ROLES, scored_edits
from scen_cli.recipe import RECIPES, Recipe
from scen_cli.studies.project_variants import ProjectVariant, StudyContext, edited_project, score_variant

# Tables 3 and 4 set these explicitly: their rows must not depend on the current project's settings.
SCEN_RECIPE: dict[str, Any] = {"disactivate": True, "margin": True, "edits_per_expert": 1}


def _scen(name: str, target_module: str = "down", **changes: Any) -> ProjectVariant:
    return ProjectVariant(name, {**SCEN_RECIPE, **changes}, target_module=target_module)


SCEN = _scen("scen")
AT_OTHER_MODULES = [_scen("W_attn", "attn"), _scen("W_up", "up")]
WITH_FEWER_LOSSES = [
    _scen("without-disactivate-and-margin", disactivate=False, margin=False),
    _scen("without-margin", margin=False),
]
EDITS_PER_EXPERT = [SCEN, _scen("two-per-expert", edits_per_expert=2), _scen("four-per-expert", edits_per_expert=4)]
THETAS = [round(0.40 + step / 100, 2) for step in range(60)]  # includes the paper's 0.60 to 0.70
HALLUCINATION_SETTINGS = ("neuron_steps", "theta", "require_learned")  # taken from the recipe `paper-hallucination`


@dataclass(frozen=True)
class StudyResult:
    """Rows of a table or points of a figure; for Fig. 3 the activation maps; a note for the reader."""

    rows: list[dict[str, Any]]
    maps: dict[str, dict[str, Any]] | None = None
    note: str = ""


@dataclass(frozen=True)
class Study:
    """`variants` lists the projects that a study edits, `run` edits and scores them."""

    variants: Callable[[StudyContext], list[ProjectVariant]]
    run: Callable[[StudyContext, Sequence[ProjectVariant]], StudyResult]


def _current_project(context: StudyContext) -> list[ProjectVariant]:
    """The current project's settings; named `scen` if they are SCEN's, so that studies share this variant."""
    recipe = Recipe.model_validate(context.settings["recipe"])
    is_scen = all(getattr(recipe, name) == value for name, value in SCEN_RECIPE.items())
    return [SCEN if is_scen and context.settings["target_module"] == "down" else ProjectVariant("own-settings")]


def _modules_and_losses(context: StudyContext) -> list[ProjectVariant]:
    trains_neurons = Recipe.model_validate(context.settings["recipe"]).trains_neurons
    return [SCEN, *AT_OTHER_MODULES, *(WITH_FEWER_LOSSES if trains_neurons else ())]


def _every_second_layer(context: StudyContext) -> list[ProjectVariant]:
    """One variant for every second layer, or for every layer of a base with fewer than 8."""
    layers, current = context.base.model.config.num_hidden_layers, context.settings["layer"]
    return [
        _current_project(context)[0] if layer == current else ProjectVariant(f"layer-{layer}", layer=layer)
        for layer in range(0, layers, 2 if layers >= 8 else 1)
    ]


def scen_row(context: StudyContext, variants: Sequence[ProjectVariant]) -> StudyResult:
    """SCEN's row of Tables 1 and 2, with the current project's settings."""
    return StudyResult([_row(context.settings["recipe"]["name"], score_variant(context, variants[0]))])


def table3(context: StudyContext, variants: Sequence[ProjectVariant]) -> StudyResult:
    """Table 3: the module of the experts, and the losses that train the neurons."""
    metrics = {variant.name: score_variant(context, variant) for variant in variants}
    rows = [_row(name, metrics[name]) for name in ("W_attn", "W_up")] + [_row("W_down", metrics["scen"])]
    if len(variants) == len(rows):
        note = f"recipe `{context.settings['recipe']['name']}` trains no neuron: no losses to compare"
        return StudyResult(rows, note=note)
    rows += [_row(variant.name, metrics[variant.name]) for variant in WITH_FEWER_LOSSES]
    return StudyResult([*rows, _row("SCEN loss (equation 8)", metrics["scen"])])


def table4(context: StudyContext, variants: Sequence[ProjectVariant]) -> StudyResult:
    """Table 4: one, two and four edits per expert."""
    scored = [(str(variant.recipe["edits_per_expert"]), score_variant(context, variant)) for variant in variants]
    return StudyResult([{**_row(name, metrics), "experts": metrics["experts"]} for name, metrics in scored])


def fig3(context: StudyContext, variants: Sequence[ProjectVariant]) -> StudyResult:
    """Fig. 3: the activation of every neuron on every edit's prompt, with one, two and four edits per expert."""
    maps, rows = {}, []
    for variant in variants:
        per_expert = variant.recipe["edits_per_expert"]
        with edited_project(context, variant) as editor, editor.snapshot() as patch:
            scored = scored_edits(editor.project.ledger.edits(), set(patch.expert_of), context.suite)
            activations = activation_map(CachedGenerator(editor, patch, DECODING["greedy"]), scored)
            expert_of = dict(patch.expert_of)
        maps[f"{per_expert} to 1"] = activations
        for edit, values in zip(activations["edits"], activations["activations"], strict=True):
            by_expert = dict(zip(activations["experts"], values, strict=True))
            own = by_expert.pop(expert_of[edit])
            others = max(by_expert.values(), default=None)
            rows.append({"edits per expert": per_expert, "edit": edit, "own": own, "strongest other": others})
    return StudyResult(rows, maps)


def fig4(context: StudyContext, variants: Sequence[ProjectVariant]) -> StudyResult:
    """Fig. 4: the three metrics at each threshold. One project is enough: theta acts at inference only."""
    with edited_project(context, variants[0]) as editor:
        points = sweep_theta(editor, context.suite, THETAS, context.decoding)
    return StudyResult([{"theta": point["theta"], **_shares(point)} for point in points])


def fig5(context: StudyContext, variants: Sequence[ProjectVariant]) -> StudyResult:
    """Fig. 5: the three metrics with the edits at every second layer."""
    layers = [context.settings["layer"] if variant.layer is None else variant.layer for variant in variants]
    rows = [_row(variant.name, score_variant(context, variant)) for variant in variants]
    return StudyResult([{"layer": layer, **row} for layer, row in zip(layers, rows, strict=True)])


def hallucination(context: StudyContext, passages: Passages) -> StudyResult:
    """Table 1, Hallucination: mean perplexities after the suite's edits, and those of the base."""
    changes = {name: getattr(RECIPES["paper-hallucination"], name) for name in HALLUCINATION_SETTINGS}
    with edited_project(context, ProjectVariant("hallucination", changes, template="none")) as editor:
        figures = evaluate_perplexity(editor, passages).as_dict()["figures"]
    return StudyResult(
        [
            {
                "text": name,
                "patched": figure["patched"]["mean"],
                "base": figure["base"]["mean"] if "base" in figure else None,
                "fired": figure["fired"]["share"] if "fired" in figure else None,
                "samples": figure["patched"]["total"],
            }
            for name, figure in figures.items()
        ]
    )


STUDIES = {
    "table1": Study(_current_project, scen_row),
    "table2": Study(_current_project, scen_row),
    "table3": Study(_modules_and_losses, table3),
    "table4": Study(lambda _context: EDITS_PER_EXPERT, table4),
    "fig3": Study(lambda _context: EDITS_PER_EXPERT, fig3),
    "fig4": Study(_current_project, fig4),
    "fig5": Study(_every_second_layer, fig5),
}


def _row(name: str, metrics: dict[str, Any]) -> dict[str, Any]:
    """A row of the paper's tables: the three metrics and their average as shares, and the counts behind them."""
    figures = metrics["figures"]
    patched = {role: figures[role]["patched"] for role in PAPER_ROLES}
    shares = _shares(patched)
    known = [share for share in shares.values() if share is not None]
    return {
        "variant": name,
        **shares,
        "average": sum(known) / len(known) if len(known) == len(PAPER_ROLES) else None,
        "generality_given_expert": figures["generality-given-expert"]["patched"]["share"],
        "locality_fired": figures["locality"]["fired"]["share"],
        "not_learned": metrics["not_learned"],
        **{f"{role}_of": patched[role]["total"] for role in PAPER_ROLES},
    }


def _shares(figures: dict[str, Any]) -> dict[str, Any]:
    return {role: figures[role]["share"] for role in PAPER_ROLES}


def write_result(name: str, result: StudyResult, metadata: dict[str, Any], folder: Path) -> list[Path]:
    """Write `NAME.json`, `NAME.csv`, and `NAME.png` for a figure; return the paths."""
    json_path, csv_path, picture = (folder / f"{name}.{suffix}" for suffix in ("json", "csv", "png"))
    content = {**metadata, "rows": result.rows, "maps": result.maps}
    write_json(json_path, content)
    with whole_file(csv_path) as draft, draft.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(result.rows[0]))
        writer.writeheader()
        writer.writerows(result.rows)
    if not name.startswith("fig"):
        return [json_path, csv_path]
    from scen_cli.report import pictures

    pictures.save(pictures.of_study(name, result.rows, result.maps, metadata), picture)
    return [json_path, csv_path, picture]
