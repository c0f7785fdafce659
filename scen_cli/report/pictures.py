"""Matplotlib figures: lines with intervals, and activation maps."""

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

# Colours that colour-blind readers can distinguish, and markers for black-and-white print.
STYLES = {"reliability": ("#0b6e99", "o"), "generality": ("#d97706", "s"), "locality": ("#4d7c0f", "^")}
SIZE = (5.2, 3.2)  # inches: fits the width of a phone without scaling
MAX_MARKERS = 30  # points


def has_matplotlib() -> bool:
    return find_spec("matplotlib") is not None


def require_matplotlib() -> None:
    """Raise `UsageError` if matplotlib is not installed."""
    if not has_matplotlib():
        raise UsageError("pictures need matplotlib", hint="`pip install matplotlib`")


def of_study(
    name: str, rows: Sequence[dict[str, Any]], maps: dict[str, dict[str, Any]] | None, metadata: dict[str, Any]
) -> Figure:
    """Figure 3, 4 or 5 of the paper from the result of a study."""
    if name == "fig3":
        return activation_maps(maps or {})
    if name == "fig4":
        return lines(rows, "theta", "threshold theta", mark=(metadata["theta"], f"theta {metadata['theta']}"))
    figure = lines(rows, "layer", "edited layer")
    figure.axes[0].set_xticks([row["layer"] for row in rows])
    return figure


def lines(
    rows: Sequence[dict[str, Any]], x: str, label: str, mark: tuple[float, str] | None = None, markers: bool = True
) -> Figure:
    """Draw Reliability, Generality and Locality over a variable.

    Args:
        rows: For each point the variable `x`, and a share or a dictionary of a share with its interval per figure.
        x: The variable's key in `rows`.
        label: The label of the x axis.
        mark: Position and label of a dashed vertical line.
        markers: Mark the points, if there are at most `MAX_MARKERS`.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=SIZE, layout="constrained")
    axes = figure.add_subplot()
    for role, (colour, marker) in STYLES.items():
        points = [(row[x], row[role]) for row in rows if row.get(role) is not None]
        points = [(at, share if isinstance(share, dict) else {"share": share, "total": 1}) for at, share in points]
        points = [(at, share) for at, share in points if share["total"]]
        if not points:
            continue
        positions, shares = zip(*points, strict=True)
        if "low" in shares[0]:
            low, high = ([100 * share[end] for share in shares] for end in ("low", "high"))
            axes.fill_between(positions, low, high, color=colour, alpha=0.15, linewidth=0)
        dots = marker if markers and len(points) <= MAX_MARKERS else None
        values = [100 * share["share"] for share in shares]
        axes.plot(positions, values, color=colour, marker=dots, markersize=4, label=role.capitalize())
    if mark is not None:
        axes.axvline(mark[0], color="#555555", linewidth=1, linestyle=(0, (4, 3)))
        axes.annotate(mark[1], (mark[0], 0), xytext=(4, 4), textcoords="offset points", fontsize=8, color="#555555")
    finish_axes(axes, label, "%", percent=True, loc="best")
    return figure


def finish_axes(axes: Axes, x: str, y: str, *, percent: bool, **legend: Any) -> None:
    """Add labels and a legend, light horizontal grid lines, and no frame at the top and right."""
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    if percent:
        axes.set_ylim(-3, 103)
    axes.legend(frameon=False, fontsize=8, **legend)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8)


def activation_maps(maps: dict[str, dict[str, Any]]) -> Figure:
    """Draw activation maps side by side: neurons are columns, edits are rows."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(max(3.6, 2.9 * len(maps)), 3.2), layout="constrained")
    for column, (title, found) in enumerate(maps.items(), start=1):
        axes: Axes = figure.add_subplot(1, len(maps), column)
        image = axes.imshow(
            found["activations"], cmap="viridis", vmin=0, vmax=1, aspect="auto", interpolation="nearest"
        )
        for axis, ids in ((axes.xaxis, found["experts"]), (axes.yaxis, found["edits"])):
            ticks = _tick_positions(len(ids))
            axis.set_ticks(ticks, [str(ids[index]) for index in ticks])
        axes.set_title(title, fontsize=9)
        axes.set_xlabel("neuron", fontsize=8)
        axes.set_ylabel("edit" if column == 1 else "", fontsize=8)
        axes.tick_params(labelsize=7)
    if maps:
        bar = figure.colorbar(image, ax=figure.axes, shrink=0.9)
        bar.set_label("activation", fontsize=8)
        bar.ax.tick_params(labelsize=7)
    return figure


def _tick_positions(size: int, ticks: int = 5) -> list[int]:
    """Up to `ticks` evenly spaced indices, with the first and the last one."""
    ticks = min(ticks, size)
    return [round(tick * (size - 1) / max(ticks - 1, 1)) for tick in range(ticks)]


def save(figure: Figure, path: Path) -> None:
    figure.savefig(path, dpi=120)


def as_svg(figure: Figure) -> str:
    """The figure as an `<svg>` element whose text stays text."""
    import matplotlib

    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "scen"}):
        file = StringIO()
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None}, transparent=True)
    text = file.getvalue()
    return text[text.index("<svg") :]
