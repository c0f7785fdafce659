"""Recipes: named settings of both stages, with the values of the paper and its authors' code."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from scen_cli.errors import VERIFY_HINT, DamageFound, UsageError

HIGHEST_RANK = 1024
Rank = Annotated[int, Field(ge=1, le=HIGHEST_RANK)] | Literal["auto"]


class Recipe(BaseModel):
    """Settings of both stages. Defaults are the paper's (Llama-2-7B: d = 4096, h = 11008)."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    name: str = "paper"
    expert_lr: float = Field(1e-4, gt=0, description="learning rate of full experts (Adam)")
    expert_steps: int = Field(10, ge=1, description="Adam steps of an expert")
    extra_steps: int = Field(0, ge=0, description="further steps at most, while the target is not learned")
    expert: Literal["full", "low-rank"] = Field(
        "full", description="full: a complete W_down per edit; low-rank: the base's W_down plus B A"
    )
    rank: Rank = Field(
        16, description="rank of low-rank experts; auto: the smallest of 4, 8, ..., 64 that reaches `logit_margin`"
    )
    low_rank_lr: float = Field(
        0.1, gt=0, description="learning rate of low-rank experts (Adam), relative to the base's activations"
    )
    stop_when: Literal["steps", "learned"] = Field(
        "steps", description="learned: training stops as soon as the target reaches `logit_margin`"
    )
    logit_margin: float = Field(
        2.0, ge=0, description="how far the logit of each target token must exceed the next best, in logits"
    )
    neuron_lr: float = Field(1e-4, gt=0, description="learning rate of an indexing neuron (Adam)")
    neuron_steps: int = Field(20, ge=0, description="Adam steps of an indexing neuron")
    alpha: float = Field(0.7, description="alpha in equation 6 of the neuron's loss")
    beta: float = Field(0.3, description="beta in equation 7 of the neuron's loss")
    m: float = Field(1.0, ge=0, description="weight of equations 6 and 7 in the neuron's loss (equation 8)")
    disactivate: bool = Field(True, description="false: omit equation 6 from the neuron's loss")
    margin: bool = Field(True, description="false: omit equation 7 from the neuron's loss")
    edits_per_expert: int = Field(1, ge=1, description="how many edits share one expert and one neuron")
    require_learned: bool = Field(True, description="false: keep an expert that does not give its target")
    theta: float = Field(0.65, gt=0, lt=1, description="activation threshold; its lower bound if it is calibrated")
    index: Literal["paper", "key", "closed-form", "joint"] = Field("paper", description="how neurons are made")
    key_pooling: Literal["last", "mean"] = Field(
        "last", description="last: the key at the last token; mean: the mean over all tokens but the first"
    )
    key_layer: int | None = Field(
        None, ge=0, description="the layer in which keys are read; none: the edited layer, as in the paper"
    )
    route_segments: bool = Field(False, description="true: also route by a prompt's last turn and last sentence")
    subject_filter: bool = Field(
        False, description="true: route to an edit that has a `subject` only if the prompt names it"
    )
    mask_subject: bool = Field(
        False,
        description="true: the key of an edit with a `subject` is read with the subject masked: it tells the question",
    )
    same_subject: float | None = Field(
        None,
        gt=0,
        le=0.5,
        description="share of other questions about an edit's subject that may be routed to it: theta's lower bound "
        "is calibrated for it; none: it is `theta`",
    )
    false_activation: float | None = Field(
        None,
        gt=0,
        le=0.5,
        description="share of unedited prompts that may be routed: theta is calibrated for it; none: theta is fixed",
    )
    prompt_augmentations: int = Field(
        0, ge=0, le=4, description="how many prompts, made from the edit's own, the expert is also trained on"
    )

    kept_questions: int = Field(
        0,
        ge=0,
        le=64,
        description="other questions about its subject, whose answers an expert is trained to keep: how many",
    )
    kept_weight: float = Field(1.0, gt=0, description="weight of the loss on these questions")

    @property
    def cosine(self) -> bool:
        """Whether activations are cosines; otherwise they are sigmoid(w . k), as in the paper."""
        return self.index in ("key", "closed-form")

    @property
    def rate_name(self) -> str:
        """The setting that holds the experts' learning rate."""
        return "expert_lr" if self.expert == "full" else "low_rank_lr"

    @property
    def trains_neurons(self) -> bool:
        return self.index in ("paper", "joint")

    @property
    def masks_subjects(self) -> bool:
        """Whether keys of edits with a subject are read with the subject masked."""
        return self.mask_subject and self.subject_filter and self.index == "closed-form"

    @property
    def needs_guard(self) -> bool:
        """Whether neurons or theta are made with guard prompts: prompts that must keep the base's answer."""
        return self.index in ("closed-form", "joint") or self.false_activation is not None

    @property
    def unused(self) -> set[str]:
        """Settings without effect in this recipe."""
        unused = {"rank", "low_rank_lr"} if self.expert == "full" else {"expert_lr"}
        if not self.trains_neurons:
            unused |= {"neuron_lr", "neuron_steps", "alpha", "beta", "m", "disactivate", "margin"}
        if not self.kept_questions:
            unused.add("kept_weight")
        if self.stop_when == "steps" and (self.expert == "full" or self.rank != "auto"):
            unused.add("logit_margin")
        return unused

    def __str__(self) -> str:
        """Name and settings, without those that have no effect."""
        hidden = {"name", "index"} | self.unused
        hidden |= {name for name in _SWITCHES if getattr(self, name) == Recipe.model_fields[name].default}
        return ", ".join([self.name, *(f"{name} {value}" for name, value in self.model_dump(exclude=hidden).items())])


# Shown only if they differ from the default.
_SWITCHES = (
    *("disactivate", "margin", "edits_per_expert", "require_learned", "key_pooling", "key_layer", "route_segments"),
    *("subject_filter", "mask_subject", "same_subject", "false_activation", "prompt_augmentations", "extra_steps"),
    *("expert", "stop_when", "kept_questions", "kept_weight"),
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
    ),  # targets are sentences, scored by perplexity
    "key": Recipe(name="key", index="key", theta=0.8),
    "closed-form": Recipe(
        name="closed-form",
        index="closed-form",
        **{**_CALIBRATED, "theta": 0.05, "mask_subject": True, "same_subject": 0.04},
    ),
    "joint": Recipe(name="joint", index="joint", **_CALIBRATED),
}
DEFAULT_RECIPE = "closed-form"

# The paper's learning rates are for d = 4096. These are for the demo's d = 96 (benchmarks/LOG.md).
DEMO_RATES: dict[str, str | float | None] = {"expert_lr": 1e-2, "neuron_lr": 1e-3, "neuron_steps": 100}
# The demo base has never seen a question with a pronoun for its subject: a masked key says nothing.
DEMO_CLOSED_FORM: dict[str, str | float | None] = {"mask_subject": False, "same_subject": None, "theta": 0.45}

_NEURON_HINT = "it belongs to recipes that train neurons: `paper` and `joint`"
_UNUSED_HINTS = {
    "expert_lr": "it is the learning rate of full experts: use `--expert full`, or set `low_rank_lr`",
    "low_rank_lr": "it is the learning rate of low-rank experts: use `--expert low-rank`, or set `expert_lr`",
    "rank": "full experts have none: use `--expert low-rank`",
    "kept_weight": "it needs `kept_questions`",
    "logit_margin": "it needs `--stop-when learned` or `--rank auto`",
}


def make_recipe(
    name: str, changes: Mapping[str, str | float | None], defaults: Mapping[str, str | float | None] | None = None
) -> Recipe:
    """A named recipe with changed settings.

    Args:
        name: One of `RECIPES`.
        changes: New values, as text or as numbers.
        defaults: Further values, which `changes` override.

    Raises:
        UsageError: The recipe or a setting is unknown, a value is out of range, or a changed setting has no effect.
    """
    if name not in RECIPES:
        raise UsageError(f"there is no recipe `{name}`", hint=f"recipes: {', '.join(RECIPES)}")
    fixed = {"name", "index"}
    unknown = [setting for setting in changes if setting not in Recipe.model_fields or setting in fixed]
    if unknown:
        known = ", ".join(setting for setting in Recipe.model_fields if setting not in fixed)
        raise UsageError(f"a recipe has no setting `{unknown[0]}`", hint=f"settings: {known}")
    try:
        recipe = Recipe.model_validate({**RECIPES[name].model_dump(), **(defaults or {}), **changes})
    except ValidationError as error:
        problem = error.errors()[0]
        setting = str(problem["loc"][0])
        raise UsageError(
            f"setting `{setting}`: {problem['msg']}", hint=Recipe.model_fields[setting].description or ""
        ) from error
    if unused := [setting for setting in changes if setting in recipe.unused]:
        raise UsageError(
            f"setting `{unused[0]}` has no effect in recipe `{name}`", hint=_UNUSED_HINTS.get(unused[0], _NEURON_HINT)
        )
    return recipe


def stored_recipe(settings: Mapping[str, Any]) -> Recipe:
    """The recipe in a project's settings. Raises `DamageFound` if it is not valid."""
    try:
        return Recipe.model_validate(settings["recipe"])
    except ValidationError as error:
        problem = error.errors()[0]
        setting = ".".join(map(str, problem["loc"]))
        raise DamageFound(f"the recipe in `scen.db` is invalid: `{setting}`: {problem['msg']}", VERIFY_HINT) from error


def check_rank(text: str) -> int | str:
    """Parse a rank. Raises `UsageError` if it is not valid."""
    try:
        return Recipe.model_validate({"expert": "low-rank", "rank": text}).rank
    except ValidationError as error:
        raise UsageError(f"rank `{text}` is neither a number from 1 to {HIGHEST_RANK} nor `auto`") from error
