"""Pictures by matplotlib: lines with their intervals, and activation maps."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scen_cli.errors import UsageError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Told apart by those who see few colours, and by their markers in print.
STYLES = {
    "reliability": ("#0b6e99", "o"),
    "generality": ("#d97706", "s"),
    "locality": ("#4d7c0f", "^"),
}
SIZE = (5.2, 3.2)  # inches: as wide as a phone shows at its own size


def has_matplotlib() -> bool:
    return find_spec("matplotlib") is not None


def require_matplotlib() -> None:
    """Raise `UsageError` if matplotlib is not installed: pictures are an extra."""
    if not has_matplotlib():
        raise UsageError("pictures need matplotlib", hint="`pip install matplotlib`")


def of_study(
    name: str, rows: Sequence[dict[str, Any]], maps: dict[str, dict[str, Any]] | None, about: dict[str, Any]
) -> Figure:
    """Fig. 3, 4 or 5 from a study's findings."""
    if name == "fig3":
        return activation_maps(maps or {})
    if name == "fig4":
        return lines(rows, "theta", "threshold theta", mark=(about["theta"], f"theta {about['theta']}"))
    figure = lines(rows, "layer", "edited layer")
    figure.axes[0].set_xticks([row["layer"] for row in rows])
    return figure


def lines(
    rows: Sequence[dict[str, Any]], x: str, label: str, mark: tuple[float, str] | None = None, markers: bool = True
) -> Figure:
    """Reliability, Generality and Locality over `x`: shares, or dicts with their intervals."""
    figure, axes = _figure()
    for role, (colour, marker) in STYLES.items():
        points = [(row[x], row[role]) for row in rows if row.get(role) is not None]
        points = [(at, share) for at, share in points if not isinstance(share, dict) or share["total"]]
        if not points:
            continue
        places = [at for at, _ in points]
        if isinstance(points[0][1], dict):
            axes.fill_between(
                places,
                [100 * share["low"] for _, share in points],
                [100 * share["high"] for _, share in points],
                color=colour,
                alpha=0.15,
                linewidth=0,
            )
            points = [(at, share["share"]) for at, share in points]
        dots = marker if markers and len(points) <= 30 else None
        axes.plot(
            places,
            [100 * share for _, share in points],
            color=colour,
            marker=dots,
            markersize=4,
            label=role.capitalize(),
        )
    if mark is not None:
        axes.axvline(mark[0], color="#555555", linewidth=1, linestyle=(0, (4, 3)))
        axes.annotate(mark[1], (mark[0], 0), xytext=(4, 4), textcoords="offset points", fontsize=8, color="#555555")
    axes.set_xlabel(label)
    axes.set_ylabel("%")
    axes.set_ylim(-3, 103)
    axes.legend(frameon=False, fontsize=8, loc="best")
    return figure


def activation_maps(maps: dict[str, dict[str, Any]]) -> Figure:
    """Neurons across, edits down; one map, or several side by side."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(max(3.6, 2.9 * len(maps)), 3.2), layout="constrained")
    for place, (title, found) in enumerate(maps.items(), start=1):
        axes: Axes = figure.add_subplot(1, len(maps), place)
        drawn = axes.imshow(
            found["activations"], cmap="viridis", vmin=0, vmax=1, aspect="auto", interpolation="nearest"
        )
        for axis, ids in ((axes.xaxis, found["experts"]), (axes.yaxis, found["edits"])):
            places = sorted({round(place) for place in _evenly(len(ids))})
            axis.set_ticks(places, [str(ids[place]) for place in places])
        axes.set_title(title, fontsize=9)
        axes.set_xlabel("neuron", fontsize=8)
        axes.set_ylabel("edit" if place == 1 else "", fontsize=8)
        axes.tick_params(labelsize=7)
    if maps:
        bar = figure.colorbar(drawn, ax=figure.axes, shrink=0.9)
        bar.set_label("activation", fontsize=8)
        bar.ax.tick_params(labelsize=7)
    return figure


def _evenly(count: int, ticks: int = 5) -> list[float]:
    """Places of a few of so many rows, the first and the last among them."""
    return [at * (count - 1) / (min(ticks, count) - 1) for at in range(min(ticks, count))] if count > 1 else [0]


def save(figure: Figure, path: Path) -> None:
    figure.savefig(path, dpi=120)


def as_svg(figure: Figure) -> str:
    """The picture as an `<svg>` element, for a page: texts stay texts."""
    import matplotlib

    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "scen"}):
        drawn = StringIO()
        figure.savefig(drawn, format="svg", metadata={"Date": None, "Creator": None}, transparent=True)
    text = drawn.getvalue()
    return text[text.index("<svg") :]


def _figure() -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=SIZE, layout="constrained")
    axes: Axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#dddddd", linewidth=0.6)
    axes.tick_params(labelsize=8)
    return figure, axes
