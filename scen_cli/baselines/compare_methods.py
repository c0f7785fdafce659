"""A comparison: every row tuned by the same budget on development edits, then run on the suite's own, and scored after
the last of them. What each row came to is kept in a file of its own, so that a comparison goes on where it stopped.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from math import isfinite
from pathlib import Path
from typing import Any

import torch

from scen_cli.baselines.catalogue import find_method, ready_method
from scen_cli.baselines.method import Method, MethodContext, attached
from scen_cli.baselines.result_rows import Row, with_choice
from scen_cli.baselines.scoring import Answers, Scoring
from scen_cli.data.records import EditRecord
from scen_cli.data.write_records import digest, write_json
from scen_cli.errors import UsageError
from scen_cli.evaluation.curves import RETENTION_AT
from scen_cli.model.template import Template

Tell = Callable[[str, str], None]
WORST = -1e9  # what cannot even be scored comes to
TIMED_TOKENS, TIMED_PROMPTS, TIMED_ROUNDS = 32, 4, 4


@dataclass(frozen=True)
class Bench:
    """What all rows share: what they are given, how they are scored when they are tuned and when they are run, how many
    settings of each may be tried, and the folder that results are kept in."""

    given: MethodContext
    development: Scoring
    test: Scoring
    trials: int
    about: dict[str, Any]
    folder: Path
    tell: Tell


def compare(bench: Bench, rows: Sequence[Row]) -> list[dict[str, Any]]:
    """What each row came to, in order; a row that was done before is read. Raises `UsageError` if the folder holds
    another comparison's rows."""
    bench.folder.mkdir(parents=True, exist_ok=True)
    return [_kept(bench, row) or _done(bench, row) for row in rows]


def _kept(bench: Bench, row: Row) -> dict[str, Any] | None:
    path = bench.folder / f"{row.name}.json"
    if not path.is_file():
        return None
    try:
        kept: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        known = kept["of"]
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"`{path}` is no row of a comparison", hint="remove it, and run again") from error
    if known != _identity(bench, row):
        raise UsageError(f"`{path}` is of another comparison", hint="remove it, or give another `--out`")
    bench.tell(f"{row.name}: done before", row.name)
    return kept


def _identity(bench: Bench, row: Row) -> str:
    """What a row's result hangs on: of anything else, another result."""
    given = bench.given
    training = [edit.as_json() for edit in given.development]
    where = [str(given.base.model.dtype), given.base.device.type]
    if (held := getattr(given.base.model.config, "quantization_config", None)) is not None:
        where.append(str(held))
    scored = [bench.development.about(), bench.test.about()]
    return digest([bench.about, where, list(given.prompts), training, scored, asdict(row)])


def _done(bench: Bench, row: Row) -> dict[str, Any]:
    started = time.perf_counter()
    trials = tune(bench, row)
    best = max(trials, key=lambda trial: trial["average"])  # of equals the first
    tuned = time.perf_counter() - started
    found = run(bench, row, best["settings"])
    result = {
        "row": row.name,
        "of": _identity(bench, row),
        "method": row.method,
        "settings": _all_settings(row, best["settings"]),
        **found,
        "tuning": {"trials": trials, "seconds": round(tuned, 2), "edits": len(bench.development.edits)},
    }
    write_json(bench.folder / f"{row.name}.json", result)
    bench.tell(f"{row.name}: average {result['average']:.3f}", row.name)
    return result


def tune(bench: Bench, row: Row) -> list[dict[str, Any]]:
    """Settings that were tried, at most `bench.trials`, each with its figures: the row's own first, then one choice
    after another beside the best of those before it. What does no better does not take its place."""
    trials = [_trial(bench, row, row.settings)]
    best = trials[0]
    for alternatives in row.choices:
        before = best
        for choice in alternatives[: bench.trials - len(trials)]:
            trials.append(_trial(bench, row, with_choice(before["settings"], choice)))
            bench.tell("", f"{row.name}: {len(trials)} settings tried")
            best = max(best, trials[-1], key=lambda trial: float(trial["average"]))  # of equals the first
    return trials


def _trial(bench: Bench, row: Row, settings: dict[str, Any]) -> dict[str, Any]:
    """One setting's figures after the development edits. What cannot even be fitted comes last."""
    scoring = bench.development
    try:
        method, seconds, _curve = _fitted(bench.given, row, settings, scoring)
        with attached(method):
            figures = scoring.score(method)
    except (UsageError, torch.linalg.LinAlgError) as error:
        return {"settings": settings, "average": WORST, "error": str(error).splitlines()[0]}
    average = scoring.average(figures)
    values = {name: figure.value for name, figure in figures.items()}
    return {"settings": settings, "average": average if isfinite(average) else WORST, **values, "seconds": seconds}


def run(bench: Bench, row: Row, settings: dict[str, Any]) -> dict[str, Any]:
    """Fit the suite's edits, score after the last, and measure what it costs."""
    scoring = bench.test
    anew = replace(bench.given, kept={"unedited": bench.given.unedited})  # all else is done again, and its time told
    started = time.perf_counter()
    empty = ready_method(row.method, anew, settings)
    setup, fixed = time.perf_counter() - started, empty.cost()
    del empty
    method, seconds, curve = _fitted(anew, row, settings, scoring, bench.tell)
    with attached(method):
        figures = scoring.score(method)
    cost, edits = method.cost(), len(scoring.edits)
    return {
        "edits": edits,
        "figures": {name: asdict(figure) for name, figure in figures.items()},
        "average": scoring.average(figures),
        "retention": curve,
        "setup_seconds": round(setup, 3),
        "seconds_per_edit": seconds / edits,
        "fixed_bytes": fixed.bytes,
        "bytes_per_edit": (cost.bytes - fixed.bytes) / edits,
        "parameters": cost.parameters,
        "milliseconds_per_token": _token_times(method, scoring.edits, bench.given),
    }


def _fitted(
    given: MethodContext, row: Row, settings: dict[str, Any], scoring: Scoring, tell: Tell | None = None
) -> tuple[Method, float, list[dict[str, Any]]]:
    """A method that has fitted all edits, in its batches; the seconds that took, without its making; and Reliability
    of edits 1..t when there were t, if there is somebody to `tell`."""
    method = ready_method(row.method, given, settings)
    size = method.settings.batch or len(scoring.edits)
    seconds, curve = 0.0, []
    for start in range(0, len(scoring.edits), size):
        some = scoring.edits[start : start + size]
        started = time.perf_counter()
        method.fit(some)
        seconds += time.perf_counter() - started
        done = start + len(some)
        if tell is not None:
            tell("", f"{row.name}: {done} of {len(scoring.edits)} edits")
            at_end = done == len(scoring.edits)
            if isinstance(scoring, Answers) and (at_end or any(start < mark <= done for mark in RETENTION_AT)):
                with attached(method):
                    share = scoring.reliability(method, scoring.edits[:done])
                curve.append({"edits": done, "reliability": asdict(share)})
    return method, seconds, curve


def _token_times(method: Method, edits: Sequence[EditRecord], given: MethodContext) -> dict[str, float]:
    """Milliseconds for one token of one sequence, by the base and with the edits, in turns; medians. Half the prompts
    are edits."""
    prompts = [edit.prompt for edit in edits[: TIMED_PROMPTS // 2]] + list(given.prompts[: TIMED_PROMPTS // 2])
    times: dict[str, list[float]] = {"base": [], "edited": []}
    for number in range(TIMED_ROUNDS * 2):
        name = ("base", "edited")[number % 2]
        with attached(method, name == "edited"):
            for prompt in prompts:
                times[name].append(_timed(method, given.template, prompt))
    return {name: round(1000 * statistics.median(one), 4) for name, one in times.items()}


@torch.no_grad()
def _timed(method: Method, template: Template, prompt: str) -> float:
    started = time.perf_counter()
    ids, mask = method.encode([prompt])
    method.generate(
        ids,
        mask,
        do_sample=False,
        max_new_tokens=TIMED_TOKENS,
        min_new_tokens=TIMED_TOKENS,
        pad_token_id=template.end_id,
        eos_token_id=list(template.end_ids),
    )
    if ids.device.type == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - started) / TIMED_TOKENS


def _all_settings(row: Row, settings: dict[str, Any]) -> dict[str, Any]:
    return find_method(row.method).settings_type.model_validate(settings).model_dump()
