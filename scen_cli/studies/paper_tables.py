"""The paper's tables and figures: which variants each compares, and what it shows of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from scen_cli.data.passages import Passages
from scen_cli.evaluation.cached_generator import CachedGenerator
from scen_cli.evaluation.curves import activation_map
from scen_cli.evaluation.evaluate_project import DECODING, sweep_theta
from scen_cli.evaluation.hallucination import evaluate_perplexity
from scen_cli.evaluation.samples import PAPERS_ROLES, scored_edits
from scen_cli.recipe import RECIPES, Recipe
from scen_cli.studies.project_variants import Bench, Variant, edited, score

# What the rows of Tables 3 and 4 are compared with is set outright, whatever the current project has.
_PLAIN: dict[str, Any] = {"disactivate": True, "margin": True, "edits_per_expert": 1}
SCEN = Variant("scen", _PLAIN, target_module="down")
W_ATTN = Variant("W_attn", _PLAIN, target_module="attn")
W_UP = Variant("W_up", _PLAIN, target_module="up")
ACTIVATE_ALONE = Variant(
    "without-disactivate-and-margin", {**_PLAIN, "disactivate": False, "margin": False}, target_module="down"
)
WITHOUT_MARGIN = Variant("without-margin", {**_PLAIN, "margin": False}, target_module="down")
TABLE3 = [W_ATTN, W_UP, SCEN, ACTIVATE_ALONE, WITHOUT_MARGIN]
SHARED = [
    SCEN,
    Variant("two-per-expert", {**_PLAIN, "edits_per_expert": 2}, target_module="down"),
    Variant("four-per-expert", {**_PLAIN, "edits_per_expert": 4}, target_module="down"),
]
THETAS = [round(0.40 + step / 100, 2) for step in range(60)]  # the paper's 0.60 to 0.70, and beyond


@dataclass(frozen=True)
class Finding:
    """Rows of a table or points of a figure, for Fig. 3 the activation maps to draw, and what to know."""

    rows: list[dict[str, Any]]
    maps: dict[str, dict[str, Any]] | None = None
    note: str = ""


def scen_row(bench: Bench) -> Finding:
    """SCEN's row of Tables 1 and 2, with the current project's settings as they are."""
    return Finding([_row(bench.settings["recipe"]["name"], score(bench, _own(bench)))])


def _own(bench: Bench) -> Variant:
    """The current project's own settings; under SCEN's name where they are SCEN's."""
    recipe = Recipe.model_validate(bench.settings["recipe"])
    plain = all(getattr(recipe, name) == value for name, value in _PLAIN.items())
    return SCEN if plain and bench.settings.get("target_module", "down") == "down" else Variant("own-settings")


def table3(bench: Bench) -> Finding:
    """Table 3: where the expert sits, and which losses train its neuron."""
    scen = score(bench, SCEN)
    rows = [_row(variant.name, score(bench, variant)) for variant in (W_ATTN, W_UP)] + [_row("W_down", scen)]
    if not Recipe.model_validate(bench.settings["recipe"]).trains_neurons:
        return Finding(rows, note=f"recipe `{bench.settings['recipe']['name']}` trains no neuron: no losses to compare")
    rows += [_row(variant.name, score(bench, variant)) for variant in (ACTIVATE_ALONE, WITHOUT_MARGIN)]
    return Finding([*rows, _row("SCEN loss (equation 8)", scen)])


def table4(bench: Bench) -> Finding:
    """Table 4: one, two and four edits for each expert."""
    rows = []
    for variant in SHARED:
        metrics = score(bench, variant)
        rows.append({**_row(str(variant.recipe["edits_per_expert"]), metrics), "experts": metrics["experts"]})
    return Finding(rows)


def fig3(bench: Bench) -> Finding:
    """Fig. 3: activations of every neuron on every edit's prompt, with one, two and four edits to an expert."""
    maps, rows = {}, []
    for variant in SHARED:
        shared = variant.recipe["edits_per_expert"]
        with edited(bench, variant) as editor, editor.snapshot() as patch:
            scored = scored_edits(editor.project.ledger.edits(), set(patch.expert_of), bench.suite)
            found = activation_map(CachedGenerator(editor, patch, DECODING["greedy"]), scored)
            of = dict(patch.expert_of)
        maps[f"{shared} to 1"] = found
        for edit, activations in zip(found["edits"], found["activations"], strict=True):
            own = dict(zip(found["experts"], activations, strict=True))
            others = max((value for expert, value in own.items() if expert != of[edit]), default=None)
            rows.append({"edits per expert": shared, "edit": edit, "own": own[of[edit]], "strongest other": others})
    return Finding(rows, maps)


def fig4(bench: Bench) -> Finding:
    """Fig. 4: the three figures at each threshold. Nothing is trained again: theta acts at inference alone."""
    with edited(bench, _own(bench)) as editor:
        points = sweep_theta(editor, bench.suite, THETAS, bench.decoding)
    return Finding([{"theta": point["theta"], **_shares(point)} for point in points])


def fig5(bench: Bench) -> Finding:
    """Fig. 5: the three figures with the edits at every second layer."""
    rows = []
    for variant in _every_second_layer(bench):
        layer = bench.settings["layer"] if variant.layer is None else variant.layer
        rows.append({"layer": layer, **_row(variant.name, score(bench, variant))})
    return Finding(rows)


def _every_second_layer(bench: Bench) -> list[Variant]:
    count = bench.base.model.config.num_hidden_layers
    layers = range(0, count, 2 if count >= 8 else 1)  # of a base with few layers, every one
    own = bench.settings["layer"]
    return [_own(bench) if layer == own else Variant(f"layer-{layer}", layer=layer) for layer in layers]


def projects_of(name: str, bench: Bench) -> int:
    """How many projects a study edits."""
    many = {"table3": len(TABLE3), "table4": len(SHARED), "fig3": len(SHARED)}
    return len(_every_second_layer(bench)) if name == "fig5" else many.get(name, 1)


def hallucination(bench: Bench, passages: Passages) -> Finding:
    """The Hallucination half of Table 1: perplexities after the suite's edits, with the base's beside."""
    settings = RECIPES["paper-hallucination"]
    changes = {name: getattr(settings, name) for name in ("neuron_steps", "theta", "require_learned")}
    with edited(bench, Variant("hallucination", changes, template="none")) as editor:
        figures = evaluate_perplexity(editor, passages).as_dict()["figures"]
    return Finding(
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


STUDIES: dict[str, Callable[[Bench], Finding]] = {
    "table1": scen_row,
    "table2": scen_row,
    "table3": table3,
    "table4": table4,
    "fig3": fig3,
    "fig4": fig4,
    "fig5": fig5,
}


def _row(name: str, metrics: dict[str, Any]) -> dict[str, Any]:
    """A line of the paper's tables: the three figures and their average, in shares; what was counted besides."""
    figures = {role: metrics["figures"][role]["patched"] for role in PAPERS_ROLES}
    shares = _shares(figures)
    known = [shares[role] for role in PAPERS_ROLES if shares[role] is not None]
    average = sum(known) / len(known) if len(known) == len(PAPERS_ROLES) else None
    counts = {f"{role}_of": figures[role]["total"] for role in PAPERS_ROLES}
    fired = metrics["figures"]["locality"]["fired"]["share"]
    return {
        "variant": name,
        **shares,
        "average": average,
        "generality_given_expert": metrics["figures"]["generality-given-expert"]["patched"]["share"],
        "locality_fired": fired,
        "not_learned": metrics["not_learned"],
        **counts,
    }


def _shares(figures: dict[str, Any]) -> dict[str, Any]:
    return {role: figures[role]["share"] for role in PAPERS_ROLES}
