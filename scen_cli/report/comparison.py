"""The result of `scen compare` as a table and as a figure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from scen_cli.report.pictures import STYLES, finish_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Results = Sequence[dict[str, Any]]  # one dictionary per method
SHARES = ("reliability", "generality", "locality")
PERPLEXITIES = ("wikibio-e", "wikibio-a", "openwebtext")
_COSTS = ["s/edit#", "set up s#", "fixed MB#", "kB/edit#", "time/token#", "tried#"]


def columns(results: Results) -> list[str]:
    """The column headings of `lines`; `#` marks a column of numbers."""
    names = _figure_names(results)
    averages = ["Avg#", "token acc.#"] if names == SHARES else []
    return ["method", *(f"{name.capitalize()}#" for name in names), *averages, *_COSTS]


def lines(results: Results) -> list[list[str]]:
    """One row per method, in the order in which they ran. Shares are in percent; `time/token` is relative to the
    base."""
    names = _figure_names(results)
    return [[result["row"], *_scores(result, names), *_costs(result)] for result in results]


def retention(results: Results) -> list[tuple[str, str]]:
    """For each method, Reliability of edits 1 to t after t edits."""
    return [
        (result["row"], "  ".join(f"{point['reliability']['right']}/{point['edits']}" for point in result["retention"]))
        for result in results
        if result["retention"]
    ]


def picture(results: Results) -> Figure:
    """Draw the figures of the methods as bars, and below them Reliability over the number of edits."""
    from matplotlib.figure import Figure

    curves = [result for result in results if len(result["retention"]) > 1]
    figure = Figure(figsize=(8.2, 6.4 if curves else 3.4), layout="constrained")
    _draw_bars(figure.add_subplot(2 if curves else 1, 1, 1), results)
    if curves:
        _draw_retention(figure.add_subplot(2, 1, 2), curves)
    return figure


def _draw_bars(axes: Axes, results: Results) -> None:
    names = _figure_names(results)
    scale, unit = (100, "%") if names == SHARES else (1, "perplexity")
    width = 0.8 / len(names)
    for index, (name, (colour, _marker)) in enumerate(zip(names, STYLES.values(), strict=False)):
        heights = [scale * (_value(result, name) or 0.0) for result in results]
        positions = [position + (index - (len(names) - 1) / 2) * width for position in range(len(results))]
        axes.bar(positions, heights, width * 0.92, color=colour, label=name.capitalize())
    axes.set_xticks(range(len(results)), [result["row"] for result in results], rotation=30, ha="right", fontsize=8)
    finish_axes(axes, "", unit, percent=False, ncols=3, loc="lower left", bbox_to_anchor=(0, 1))


def _draw_retention(axes: Axes, results: Results) -> None:
    for index, result in enumerate(results):
        points = [(point["edits"], 100 * point["reliability"]["share"]) for point in result["retention"]]
        style = ("-", "--", ":", "-.")[index // 10 % 4]
        axes.plot(*zip(*points, strict=True), style, color=f"C{index % 10}", label=result["row"], marker=".")
    y = "Reliability of edits 1 to t, %"
    finish_axes(axes, "number of edits t", y, percent=True, loc="center left", bbox_to_anchor=(1, 0.5))


def _figure_names(results: Results) -> tuple[str, ...]:
    figures = results[0]["figures"]
    return SHARES if "reliability" in figures else tuple(name for name in PERPLEXITIES if name in figures)


def _scores(result: dict[str, Any], names: tuple[str, ...]) -> list[str]:
    scores = [_value(result, name) for name in names]
    if names != SHARES:
        return ["-" if score is None else f"{score:.2f}" for score in scores]
    scores += [result["average"], _value(result, "token-accuracy")]
    return ["-" if score is None else f"{100 * score:.1f}" for score in scores]


def _costs(result: dict[str, Any]) -> list[str]:
    times = result["milliseconds_per_token"]
    return [
        f"{result['seconds_per_edit']:.3f}",
        f"{result['setup_seconds']:.1f}",
        f"{result['fixed_bytes'] / 1e6:.2f}",
        f"{result['bytes_per_edit'] / 1e3:.1f}",
        f"{times['edited'] / times['base']:.2f}x",
        str(len(result["tuning"]["trials"])),
    ]


def _value(result: dict[str, Any], name: str) -> float | None:
    figure = result["figures"].get(name, {})
    value: float | None = figure.get("share", figure.get("mean"))
    return value
