"""Charts as SVG that takes its colors from the surrounding page: one drawing for light, dark and print."""

import io
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from xml.etree import ElementTree

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)  # it logs that it builds its font cache

# A part drawn in one of these colors gets the style sheet's color of that name.
COLORS = {"ink": "#010203", "line": "#040506", "good": "#070809", "even": "#0a0b0c", "bad": "#0d0e0f"}
SERIES = [f"#11{i:02x}11" for i in range(6)]
_VARIABLES = {color: f"var(--{name})" for name, color in COLORS.items()} | {
    color: f"var(--series-{i})" for i, color in enumerate(SERIES)
}
_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",  # text stays text
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.linewidth": 0.6,
    "grid.color": COLORS["line"],
    "legend.frameon": False,
    "legend.fontsize": 8,
    **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), COLORS["ink"]),
    "axes.edgecolor": COLORS["line"],
    "axes.titlecolor": COLORS["ink"],
}
_SVG, _LINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
MAX_POINTS = 200  # of a curve

Curve = Sequence[tuple[int, float]]


def model_points(
    points: Mapping[str, tuple[float, Sequence[float] | None]],
    title: str,
    label: str,
    limits: tuple[float, float],
    references: Mapping[str, float],
) -> str:
    """A figure of each model with its confidence interval, from left to right, and dashed lines to compare with.

    Args:
      points: for each model the figure and its interval [low, high], if it has one.
      title, label: of the chart and of its vertical axis.
      limits: of the vertical axis; it grows where an interval is outside.
      references: the value of each dashed line by its name.
    """

    def draw(axes: Axes) -> None:
        positions, values = np.arange(len(points)), np.array([value for value, _ in points.values()])
        ends = np.array([interval or (value, value) for value, interval in points.values()])
        errors = np.abs(ends.T - values)
        axes.errorbar(positions, values, errors, color=SERIES[0], marker="o", capsize=4, linewidth=1.4)
        for x, value in zip(positions, values, strict=True):
            axes.annotate(f"{value:.2f}", (x, value), (7, -11), textcoords="offset points")
        for name, value in references.items():
            axes.axhline(value, color=COLORS["ink"], linestyle=(0, (4, 3)), linewidth=0.8)
            axes.text(1.02, value, name, transform=axes.get_yaxis_transform(), va="center", fontsize=8)
        axes.set_xticks(positions, list(points))
        axes.set_xlim(-0.4, len(points) - 0.4)
        axes.set_ylim(min(limits[0], ends.min() - 0.03), max(limits[1], ends.max()))
        axes.set_xlabel("model")
        axes.set_ylabel(label)
        axes.grid(axis="x", visible=False)

    return _render(title, draw)


def win_rate_bars(rows: Sequence[tuple[str, float, float, float]], label: str) -> str:
    """Wins, ties and losses as fractions of one bar each, the first row on top."""

    def draw(axes: Axes) -> None:
        positions, left = np.arange(len(rows))[::-1], np.zeros(len(rows))
        for i, (name, color) in enumerate((("win", "good"), ("tie", "even"), ("lose", "bad")), 1):
            percent = np.array([100 * row[i] for row in rows])
            bars = axes.barh(positions, percent, left=left, color=COLORS[color], label=name, height=0.62)
            axes.bar_label(bars, [f"{x:.0f}" if x >= 6 else "" for x in percent], label_type="center")
            left += percent
        axes.set_yticks(positions, [row[0] for row in rows])
        axes.set_xlim(0, 100)
        axes.set_xlabel("% of answers")
        axes.grid(visible=False)
        axes.figure.legend(ncols=3, loc="outside lower center")

    return _render(label, draw, height=1.35 + 0.34 * len(rows))


def vote_histograms(counts: Mapping[str, Mapping[str, int]], label: str) -> str:
    """Percentages of the whole scores 0 to 5: a group of bars per score, one bar per name."""

    def draw(axes: Axes) -> None:
        width = 0.8 / max(1, len(counts))
        for i, (name, histogram) in enumerate(counts.items()):
            votes = np.array([histogram.get(str(score), 0) for score in range(6)], float)
            positions = np.arange(6) + (i - (len(counts) - 1) / 2) * width
            axes.bar(positions, 100 * votes / max(1.0, votes.sum()), width, color=SERIES[i % len(SERIES)], label=name)
        axes.set_xticks(range(6))
        axes.set_xlabel("score")
        axes.set_ylabel("% of votes")
        axes.grid(axis="x", visible=False)
        axes.legend()

    return _render(label, draw)


def length_histograms(lengths: Mapping[str, Sequence[int]], label: str) -> str:
    """Lengths of the responses of each model, in characters; what is longer than 99 % of all is cut off."""

    def draw(axes: Axes) -> None:
        top = np.quantile(np.concatenate([np.asarray(values) for values in lengths.values()]), 0.99)
        edges = np.linspace(0, max(1.0, top), 31)
        for i, (name, values) in enumerate(lengths.items()):
            fractions = np.histogram(values, edges)[0] / max(1, len(values))
            axes.stairs(100 * fractions, edges, color=SERIES[i % len(SERIES)], label=name, linewidth=1.4)
        axes.set_xlabel("characters")
        axes.set_ylabel("% of answers")
        axes.legend()

    return _render(label, draw)


def training_curves(lines: Mapping[str, Curve], title: str, label: str) -> str:
    """Lines over training steps; a line with more than `MAX_POINTS` points is averaged over as many intervals. `label`
    is that of the vertical axis."""

    def draw(axes: Axes) -> None:
        for i, (name, points) in enumerate(lines.items()):
            axes.plot(*_averaged(points), color=SERIES[i % len(SERIES)], label=name, linewidth=1.2)
        axes.set_xlabel("step")
        axes.set_ylabel(label)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.legend()

    return _render(title, draw)


def _averaged(points: Curve) -> np.ndarray:
    intervals = np.array_split(np.asarray(points, float), min(MAX_POINTS, len(points)))
    return np.array([interval.mean(0) for interval in intervals]).T


def _render(label: str, draw: Callable[[Axes], None], width: float = 4.2, height: float = 2.7) -> str:
    """The chart as SVG; at these sizes in inches its text is as large as the page's."""
    with rc_context(_STYLE | {"svg.hashsalt": label}), io.BytesIO() as out:
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.subplots()
        draw(axes)
        axes.set_title(label)
        figure.savefig(
            out, format="svg", transparent=True, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type"))
        )
        return _apply_theme(out.getvalue(), label)


def _apply_theme(svg: bytes, label: str) -> str:
    """The drawing without inline styles, which the page's content security policy forbids: each style becomes an
    attribute, and its colors become CSS variables."""
    ElementTree.register_namespace("", _SVG)
    ElementTree.register_namespace("xlink", _LINK)
    root = ElementTree.fromstring(svg)
    used = {value.strip("url(#)") for e in root.iter() for name, value in e.items() if "#" in value and name != "style"}
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in (f"{{{_SVG}}}style", f"{{{_SVG}}}metadata"):
                parent.remove(child)
    for element in root.iter():
        for rule in filter(None, element.attrib.pop("style", "").split(";")):
            name, value = (part.strip() for part in rule.split(":", 1))
            if name == "font":
                name, value = "font-size", next(word for word in value.split() if word.endswith("px"))
            element.set(name, _VARIABLES.get(value, value))
            used.add(value.strip("url(#)"))
        if fill := element.get("fill"):
            element.set("fill", _VARIABLES.get(fill, fill))
    for element in root.iter():
        if element.get("id") and element.get("id") not in used:
            del element.attrib["id"]
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    root.set("role", "img")
    root.set("aria-label", label)
    return ElementTree.tostring(root, encoding="unicode")
