"""Recipes: every number the method needs, with the values of the paper and its authors' code."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from scen_cli.errors import DamageFound, UsageError

HIGHEST_RANK = 1024
Rank = Annotated[int, Field(ge=1, le=HIGHEST_RANK)] | Literal["auto"]


class Recipe(BaseModel):
    """Settings of both stages. Defaults are the paper's (Llama-2-7B: d = 4096, h = 11008)."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    name: str = "paper"
    expert_lr: float = Field(1e-4, gt=0, description="Adam's rate for the expert")
    expert_steps: int = Field(10, ge=1, description="Adam steps for the expert")
    extra_steps: int = Field(0, ge=0, description="more of them, while the target is not learned")
    expert: Literal["full", "low-rank"] = Field("full", description="a W_down of its own, or the base's plus B A")
    rank: Rank = Field(16, description="of a low-rank expert; auto: the least that learns the target by the lead")
    low_rank_lr: float = Field(0.1, gt=0, description="Adam's rate for a low-rank expert, in the base's own units")
    stop_when: Literal["steps", "learned"] = Field(
        "steps", description="learned: training stops as soon as the target has the lead"
    )
    logit_margin: float = Field(2.0, ge=0, description="logits by which each target token is to lead the next best")
    neuron_lr: float = Field(1e-4, gt=0, description="Adam's rate for the neuron")
    neuron_steps: int = Field(20, ge=0, description="Adam steps for the neuron")
    alpha: float = Field(0.7, description="equation 6")
    beta: float = Field(0.3, description="equation 7")
    m: float = Field(1.0, ge=0, description="equation 8")
    disactivate: bool = Field(True, description="false: the neuron's loss goes without equation 6")
    margin: bool = Field(True, description="false: the neuron's loss goes without equation 7")
    edits_per_expert: int = Field(1, ge=1, description="edits that share one expert and one neuron")
    require_learned: bool = Field(True, description="false: an expert that misses its target is used all the same")
    theta: float = Field(0.65, gt=0, lt=1, description="activation threshold; if it is calibrated, the lowest")
    index: Literal["paper", "key", "closed-form", "joint"] = Field("paper", description="how neurons are made")
    key_pooling: Literal["last", "mean"] = Field("last", description="the key: at the last token, or the tokens' mean")
    route_segments: bool = Field(False, description="true: a prompt's last turn and last sentence are read too")
    subject_filter: bool = Field(
        False, description="true: an edit with a `subject` is routed to only if the prompt names that subject"
    )
    false_activation: float | None = Field(
        None, gt=0, le=0.5, description="share of unedited prompts that may fire: theta is calibrated; none: fixed"
    )
    prompt_augmentations: int = Field(
        0, ge=0, le=4, description="other ways to put the prompt that the expert learns from too"
    )

    @property
    def cosine(self) -> bool:
        """Whether activations are cosines; else they are sigmoid(w.k)."""
        return self.index in ("key", "closed-form")

    @property
    def rate_name(self) -> str:
        """The setting that is the experts' rate."""
        return "expert_lr" if self.expert == "full" else "low_rank_lr"

    @property
    def trains_neurons(self) -> bool:
        return self.index in ("paper", "joint")

    @property
    def needs_guard(self) -> bool:
        """Whether neurons or their threshold are made with prompts that must stay the base's own."""
        return self.index in ("closed-form", "joint") or self.false_activation is not None

    @property
    def unused(self) -> set[str]:
        """Settings that this recipe has no use for."""
        unused = {"rank", "low_rank_lr"} if self.expert == "full" else {"expert_lr"}
        if not self.trains_neurons:
            unused |= {"neuron_lr", "neuron_steps", "alpha", "beta", "m", "disactivate", "margin"}
        if self.stop_when == "steps" and (self.expert == "full" or self.rank != "auto"):
            unused.add("logit_margin")
        return unused

    def __str__(self) -> str:
        """Name and settings, without those it has no use for."""
        unused = {"name", "index"} | self.unused
        unused |= {name for name in _SWITCHES if getattr(self, name) == Recipe.model_fields[name].default}
        return ", ".join([self.name, *(f"{name} {value}" for name, value in self.model_dump(exclude=unused).items())])


# Shown only when they differ from the default.
_SWITCHES = (
    "disactivate",
    "margin",
    "edits_per_expert",
    "require_learned",
    "key_pooling",
    "route_segments",
    "subject_filter",
    "false_activation",
    "prompt_augmentations",
    "extra_steps",
    "expert",
    "stop_when",
)


_CALIBRATED: dict[str, Any] = {
    "theta": 0.5,
    "route_segments": True,
    "false_activation": 0.01,
    "subject_filter": True,
    "prompt_augmentations": 2,
    "expert": "low-rank",
    "expert_steps": 15,
    "extra_steps": 60,
}
RECIPES: dict[str, Recipe] = {
    "paper": Recipe(),
    "paper-hallucination": Recipe(
        name="paper-hallucination", neuron_steps=30, theta=0.60, require_learned=False
    ),  # whole sentences, scored by perplexity
    "key": Recipe(name="key", index="key", theta=0.8),
    "closed-form": Recipe(name="closed-form", index="closed-form", **{**_CALIBRATED, "theta": 0.45}),
    "joint": Recipe(name="joint", index="joint", **_CALIBRATED),
}
DEFAULT_RECIPE = "closed-form"

# The paper's rates are for d = 4096. These fit the demo's d = 96 (benchmarks/LOG.md).
DEMO_RATES: dict[str, str | float] = {"expert_lr": 1e-2, "neuron_lr": 1e-3, "neuron_steps": 100}


def make_recipe(
    name: str, changes: Mapping[str, str | float | None], defaults: Mapping[str, str | float] | None = None
) -> Recipe:
    """A named recipe with some settings changed; `defaults` that differ from its own, as far as it has use for them.

    Raises `UsageError` for an unknown recipe, an unknown setting, one the recipe has no use for, or a value out of
    range.
    """
    defaults = defaults or {}
    if name not in RECIPES:
        raise UsageError(f"there is no recipe `{name}`", hint=f"recipes: {', '.join(RECIPES)}")
    fixed = {"name", "index"}
    unknown = [setting for setting in changes if setting not in Recipe.model_fields or setting in fixed]
    if unknown:
        known = ", ".join(setting for setting in Recipe.model_fields if setting not in fixed)
        raise UsageError(f"a recipe has no setting `{unknown[0]}`", hint=f"settings: {known}")
    try:
        recipe = Recipe.model_validate({**RECIPES[name].model_dump(), **defaults, **changes})
    except ValidationError as error:
        problem = error.errors()[0]
        setting = str(problem["loc"][0])
        raise UsageError(
            f"setting `{setting}`: {problem['msg']}", hint=Recipe.model_fields[setting].description or ""
        ) from error
    wasted = [setting for setting in changes if setting in recipe.unused]
    if wasted:
        raise UsageError(f"recipe `{name}` as it is set has no use for `{wasted[0]}`", hint=_instead(wasted[0]))
    return recipe


def stored_recipe(settings: Mapping[str, Any]) -> Recipe:
    """The recipe in a project's settings. Raises `DamageFound` for one that no scen wrote."""
    try:
        return Recipe.model_validate(settings["recipe"])
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"]))
        said = f"the recipe in `scen.db` cannot be: `{where}`: {problem['msg']}"
        raise DamageFound(said, "run `scen verify`") from error


def check_rank(text: str) -> int | str:
    """A rank as it was typed. Raises `UsageError` for one that cannot be."""
    try:
        return Recipe.model_validate({"expert": "low-rank", "rank": text}).rank
    except ValidationError as error:
        raise UsageError(f"rank `{text}` is neither a number from 1 to 1024 nor `auto`") from error


def _instead(setting: str) -> str:
    others = {
        "expert_lr": "it is the rate of full experts: `--expert full`, or `low_rank_lr`",
        "low_rank_lr": "it is the rate of low-rank experts: `--expert low-rank`, or `expert_lr`",
        "rank": "full experts have none: `--expert low-rank`",
        "logit_margin": "it counts with `--stop-when learned` or `--rank auto`",
    }
    return others.get(setting, "it is for recipes that train neurons: `paper` and `joint`")
