"""`scen compare`: tune every variant with the same budget on tuning edits, then fit and score it on the test edits.

The result of each variant is stored in its own file, so that an interrupted comparison continues.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from math import isfinite
from pathlib import Path
from typing import Any, NamedTuple

import torch

from scen_cli.baselines.catalogue import MethodVariant, Settings, find_method, prepared_method, with_choice
from scen_cli.baselines.context import MethodContext, batched
from scen_cli.baselines.method import Method, attached, make_settings
from scen_cli.baselines.scoring import GenerationScoring, Scoring
from scen_cli.data.records import EditRecord
from scen_cli.data.write_files import digest, write_json
from scen_cli.errors import UsageError
from scen_cli.evaluation.curves import RETENTION_AT
from scen_cli.evaluation.metrics import Measure

WORST = -1e9  # the average of settings that cannot be scored
Progress = Callable[[str, str], None]
TIMED_TOKENS, TIMED_PROMPTS, TIMED_ROUNDS = 32, 4, 4


@dataclass(frozen=True)
class Comparison:
    """What all variants of a comparison share.

    Attributes:
        context: The base and what methods may train on.
        tuning: Scores settings when a variant is tuned.
        test: Scores the tuned variant.
        trials: How many settings of each variant may be tried.
        metadata: Facts that the result depends on, as plain data.
        folder: Holds one file of results per variant.
        progress: Called with a message (or "") and the name of the current step.
    """

    context: MethodContext
    tuning: Scoring
    test: Scoring
    trials: int
    metadata: dict[str, Any]
    folder: Path
    progress: Progress


def compare(comparison: Comparison, variants: Sequence[MethodVariant]) -> list[dict[str, Any]]:
    """Results of the variants, in order; stored results are read. Raises `UsageError` if the folder holds results of
    another comparison."""
    comparison.folder.mkdir(parents=True, exist_ok=True)
    return [_stored(comparison, variant) or _compute(comparison, variant) for variant in variants]


def _stored(comparison: Comparison, variant: MethodVariant) -> dict[str, Any] | None:
    path = comparison.folder / f"{variant.name}.json"
    if not path.is_file():
        return None
    try:
        stored: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        identity = stored["of"]
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"`{path}` is not a result of a comparison", hint="remove it, and run again") from error
    if identity != _identity(comparison, variant):
        raise UsageError(f"`{path}` is from another comparison", hint="remove it, or give another `--out`")
    comparison.progress(f"{variant.name}: done before", variant.name)
    return stored


def _identity(comparison: Comparison, variant: MethodVariant) -> str:
    """A digest of everything that the variant's result depends on."""
    context = comparison.context
    training = [edit.as_json() for edit in context.development]
    base = [str(context.base.model.dtype), context.base.device.type]
    if (quantization := getattr(context.base.model.config, "quantization_config", None)) is not None:
        base.append(str(quantization))
    scored = [comparison.tuning.inputs(), comparison.test.inputs()]
    return digest([comparison.metadata, base, list(context.prompts), training, scored, asdict(variant)])


def _compute(comparison: Comparison, variant: MethodVariant) -> dict[str, Any]:
    started = time.perf_counter()
    trials = tune(comparison, variant)
    best = replace(variant, settings=_best(trials))
    seconds = time.perf_counter() - started
    result = {
        "row": variant.name,
        "of": _identity(comparison, variant),
        "method": variant.method,
        "settings": make_settings(find_method(variant.method).settings_type, best.settings).model_dump(),
        **run(comparison, best),
        "tuning": {"trials": trials, "seconds": round(seconds, 2), "edits": len(comparison.tuning.edits)},
    }
    write_json(comparison.folder / f"{variant.name}.json", result)
    comparison.progress(f"{variant.name}: average {result['average']:.3f}", variant.name)
    return result


def tune(comparison: Comparison, variant: MethodVariant) -> list[dict[str, Any]]:
    """Try at most `comparison.trials` settings: the variant's own first, then each group of choices on top of the best
    settings so far. Returns all trials; of equal averages the first is the best."""
    trials = [_trial(comparison, variant)]
    for choices in variant.choices:
        best = _best(trials)
        for choice in choices[: comparison.trials - len(trials)]:
            trials.append(_trial(comparison, replace(variant, settings=with_choice(best, choice))))
            comparison.progress("", f"{variant.name}: {len(trials)} settings tried")
    return trials


def _best(trials: list[dict[str, Any]]) -> Settings:
    best: Settings = max(trials, key=lambda trial: trial["average"])["settings"]
    return best


def _trial(comparison: Comparison, variant: MethodVariant) -> dict[str, Any]:
    """The figures after the tuning edits, with the variant's settings; `WORST` for settings that cannot be fitted."""
    settings = {"settings": variant.settings}
    try:
        fitted = _fit(comparison.context, variant, comparison.tuning)
    except (UsageError, torch.linalg.LinAlgError) as error:
        return {**settings, "average": WORST, "error": str(error).splitlines()[0]}
    average = comparison.tuning.average(fitted.figures)
    values = {name: figure.value for name, figure in fitted.figures.items()}
    return {**settings, "average": average if isfinite(average) else WORST, **values, "seconds": fitted.seconds}


def run(comparison: Comparison, variant: MethodVariant) -> dict[str, Any]:
    """Fit the test edits, score after the last one, and measure the costs."""
    scoring = comparison.test
    # An empty cache but for the base's answers: the time to compute the rest is measured.
    context = replace(comparison.context, cache={"unedited": comparison.context.unedited})
    started = time.perf_counter()
    empty = prepared_method(variant.method, context, variant.settings)
    setup_seconds, fixed = time.perf_counter() - started, empty.cost()
    del empty
    fitted = _fit(context, variant, scoring, comparison.progress)
    cost, edits = fitted.method.cost(), len(scoring.edits)
    return {
        "edits": edits,
        "figures": {name: asdict(figure) for name, figure in fitted.figures.items()},
        "average": scoring.average(fitted.figures),
        "retention": fitted.retention,
        "setup_seconds": round(setup_seconds, 3),
        "seconds_per_edit": fitted.seconds / edits,
        "fixed_bytes": fixed.bytes,
        "bytes_per_edit": (cost.bytes - fixed.bytes) / edits,
        "parameters": cost.parameters,
        "milliseconds_per_token": _token_times(fitted.method, scoring.edits),
    }


class _Fitted(NamedTuple):
    """A method with all edits, the seconds of `fit`, the retention (Reliability of edits 1..t after t edits), and the
    figures after the last edit."""

    method: Method
    seconds: float
    retention: list[dict[str, Any]]
    figures: dict[str, Measure]


def _fit(context: MethodContext, variant: MethodVariant, scoring: Scoring, progress: Progress | None = None) -> _Fitted:
    """Fit all edits in the method's batches, and score. Retention is measured only with `progress`."""
    method = prepared_method(variant.method, context, variant.settings)
    edits = scoring.edits
    done, seconds, retention = 0, 0.0, []
    for batch in batched(edits, method.settings.batch or len(edits)):
        started = time.perf_counter()
        method.fit(batch)
        seconds += time.perf_counter() - started
        before, done = done, done + len(batch)
        if progress is not None:
            progress("", f"{variant.name}: {done} of {len(edits)} edits")
            at_mark = done == len(edits) or any(before < mark <= done for mark in RETENTION_AT)
            if isinstance(scoring, GenerationScoring) and at_mark:
                with attached(method):
                    share = scoring.reliability(method, edits[:done])
                retention.append({"edits": done, "reliability": asdict(share)})
    with attached(method):
        return _Fitted(method, seconds, retention, scoring.score(method))


def _token_times(method: Method, edits: Sequence[EditRecord]) -> dict[str, float]:
    """Median milliseconds per token of one sequence, for the base and with the edits, measured in turns. Half of the
    prompts are edits'."""
    prompts = [edit.prompt for edit in edits[: TIMED_PROMPTS // 2]] + list(method.context.prompts[: TIMED_PROMPTS // 2])
    times: dict[str, list[float]] = {"base": [], "edited": []}
    for _round in range(TIMED_ROUNDS):
        for name, seconds in times.items():
            with attached(method, name == "edited"):
                seconds += [_seconds_per_token(method, prompt) for prompt in prompts]
    return {name: round(1000 * statistics.median(seconds), 4) for name, seconds in times.items()}


@torch.no_grad()
def _seconds_per_token(method: Method, prompt: str) -> float:
    started = time.perf_counter()
    ids, mask = method.encode([prompt])
    lengths = {"max_new_tokens": TIMED_TOKENS, "min_new_tokens": TIMED_TOKENS}
    ends = {"pad_token_id": method.template.end_id, "eos_token_id": list(method.template.end_ids)}
    method.generate(ids, mask, do_sample=False, **lengths, **ends)
    if ids.device.type == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - started) / TIMED_TOKENS
