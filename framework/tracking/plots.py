"""The report's pictures, drawn with Matplotlib."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Curves = Mapping[str, Sequence[tuple[int, float]]]
_BLUE, _ORANGE, _GREY = "#2b6cb0", "#dd6b20", "#718096"


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure in the reports' style; sizes in inches."""
    from matplotlib import rcParams
    from matplotlib.figure import Figure

    rcParams["svg.fonttype"] = "none"  # text stays text: small, selectable
    rcParams["svg.hashsalt"] = "report"
    rcParams["font.family"] = "sans-serif"
    return Figure(figsize=(width, height), layout="constrained")


def plot_curves(curves: Curves, metric: str) -> Figure:
    """Draw the training loss (and validation loss) beside the validation metric, over steps."""
    figure = new_figure(9, 3.2)
    left, right = figure.subplots(1, 2)
    for name, colour in (("train/loss", _BLUE), ("val/loss", _ORANGE)):
        if points := curves.get(name):
            left.plot(*zip(*points, strict=True), color=colour, label=name, marker="." if len(points) < 30 else "")
    left.set(title="loss", xlabel="step", yscale="log")
    left.legend(frameon=False)
    if points := curves.get(metric):
        right.plot(*zip(*points, strict=True), color=_ORANGE, label=metric, marker=".")
        right.legend(frameon=False)
    right.set(title=metric, xlabel="step")
    for axes in (left, right):
        _tidy(axes)
    return figure


def plot_confusion(values: Sequence[Sequence[float]], labels: Sequence[str]) -> Figure:
    """Draw a confusion matrix: rows are the truth, columns the decision; numbers where there is room."""
    figure = new_figure(4.6, 4.2)
    axes = figure.subplots()
    row_sums = [max(1.0, sum(row)) for row in values]
    shares = [[v / total for v in row] for row, total in zip(values, row_sums, strict=True)]
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    if len(values) <= 20:
        for i, row in enumerate(values):
            for j, value in enumerate(row):
                if value:
                    colour = "white" if shares[i][j] > 0.5 else "black"
                    axes.text(j, i, f"{value:.0f}", ha="center", va="center", color=colour, fontsize=8)
        axes.set_xticks(range(len(labels)), labels)
        axes.set_yticks(range(len(labels)), labels)
    axes.set(title="confusion on the test split", xlabel="decision", ylabel="truth")
    return figure


def plot_models(rows: Sequence[Mapping[str, Any]], metric: str) -> Figure:
    """Draw each model's latency at batch 1 against the metric; the area of a point is the size on disk."""
    figure = new_figure(6.2, 3.2)
    axes = figure.subplots()
    shown = [r for r in rows if "latency_b1" in r and "metric" in r]
    largest = max((r.get("bytes", 1) for r in shown), default=1)
    for i, row in enumerate(shown):
        area = 40 + 500 * row.get("bytes", 1) / largest
        axes.scatter(row["latency_b1"], row["metric"], s=area, color=_GREY if i == 0 else _BLUE, alpha=0.7)
        axes.annotate(row["model"], (row["latency_b1"], row["metric"]), xytext=(6, 8), textcoords="offset points")
    times = [row["latency_b1"] for row in shown]
    axes.set(title="quality and speed", xlabel="ms a call at batch 1", ylabel=f"test {metric}")
    axes.set_xscale("log" if max(times) > 4 * min(times) else "linear")
    axes.margins(0.25, 0.4)
    _tidy(axes)
    return figure


def plot_sensitivity(rows: Sequence[Mapping[str, Any]], metric: str) -> Figure:
    """Draw what the metric loses when a pass works on one layer alone, a bar for each layer and pass."""
    figure = new_figure(7, 0.9 + 0.22 * len(rows))
    axes = figure.subplots()
    names = [f"{row['layer']} ({row['pass']})" for row in rows]
    axes.barh(names[::-1], [row["lost"] for row in rows][::-1], color=_ORANGE)
    axes.set(title="one layer compressed alone, nothing trained", xlabel=f"{metric} lost on the validation split")
    axes.tick_params(axis="y", labelsize=8)
    _tidy(axes)
    return figure


def plot_trials(rows: Sequence[Mapping[str, Any]], metric: str) -> Figure:
    """Draw the chains that a search has tried, by latency and metric; those within the budget are filled."""
    figure = new_figure(6.5, 3.6)
    axes = figure.subplots()
    chains: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        parts = [row[key] for key in ("shrink", "quantise") if row[key] != "none"]
        chains.setdefault(" + ".join(parts) or "as trained", []).append(row)
    for i, (chain, tried) in enumerate(chains.items()):
        for kept in (True, False):
            points = [(row["latency_ms"], row[metric]) for row in tried if row["kept"] is kept]
            face = {"facecolor": f"C{i}" if kept else "none", "edgecolor": f"C{i}"}
            axes.scatter(*zip(*points or [(float("nan"), float("nan"))], strict=True), **face, s=30)
        axes.plot([], [], "o", color=f"C{i}", label=chain)
    axes.legend(frameon=False, fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    axes.set(title="chains tried; filled: within the budget", xlabel="ms", ylabel=metric, xscale="log")
    _tidy(axes)
    return figure


def _tidy(axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)


def as_svg(figure: Figure, cropped: bool = False) -> str:
    """Return a figure as an `<svg>` element; cropped to what is drawn, or in its own size."""
    buffer = io.StringIO()
    figure.savefig(
        buffer, format="svg", metadata={"Date": None, "Creator": None}, bbox_inches="tight" if cropped else None
    )
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def as_png(figure: Figure) -> bytes:
    """Return a figure as a PNG file's content."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()
