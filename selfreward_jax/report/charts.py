"""Charts as SVG that takes its colours from the page around it: one drawing for light, dark and paper."""

import io
import logging
from collections.abc import Mapping, Sequence
from typing import Any
from xml.etree import ElementTree

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)  # it tells of its cache where nobody asked

# What is drawn in one of these gets the style sheet's colour of that name.
COLOURS = {"ink": "#010203", "line": "#040506", "good": "#070809", "even": "#0a0b0c", "bad": "#0d0e0f"}
SERIES = [f"#11{i:02x}11" for i in range(6)]
_VARIABLES = {colour: f"var(--{name})" for name, colour in COLOURS.items()} | {
    colour: f"var(--series-{i})" for i, colour in enumerate(SERIES)
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
    "grid.color": COLOURS["line"],
    "legend.frameon": False,
    "legend.fontsize": 8,
    **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), COLOURS["ink"]),
    "axes.edgecolor": COLOURS["line"],
    "axes.titlecolor": COLOURS["ink"],
}
_SVG, _LINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
MAX_POINTS = 200  # of a curve

Curve = Sequence[tuple[int, float]]


def scores(means: Mapping[str, float], label: str, most: float) -> str:
    """A bar for each model, from 0 to `most`."""

    def draw(axes: Any) -> None:
        bars = axes.bar(list(means), list(means.values()), color=SERIES[0], width=0.6)
        axes.bar_label(bars, fmt="%.2f", padding=2)
        axes.set_ylim(0, most * 1.08)
        axes.grid(axis="x", visible=False)

    return _drawn(label, draw)


def records(rows: Sequence[tuple[str, float, float, float]], label: str) -> str:
    """Wins, ties and losses as shares of one bar each, the first on top."""

    def draw(axes: Any) -> None:
        places, left = np.arange(len(rows))[::-1], np.zeros(len(rows))
        for i, (name, colour) in enumerate((("win", "good"), ("tie", "even"), ("lose", "bad")), 1):
            share = np.array([100 * row[i] for row in rows])
            bars = axes.barh(places, share, left=left, color=COLOURS[colour], label=name, height=0.62)
            axes.bar_label(bars, [f"{x:.0f}" if x >= 6 else "" for x in share], label_type="center")
            left += share
        axes.set_yticks(places, [row[0] for row in rows])
        axes.set_xlim(0, 100)
        axes.grid(visible=False)
        axes.figure.legend(ncols=3, loc="outside lower center")

    return _drawn(label, draw, height=1.2 + 0.34 * len(rows))


def histograms(counts: Mapping[str, Mapping[str, int]], label: str) -> str:
    """Shares of whole scores 0 to 5, a group of bars each, one bar of them for each name."""

    def draw(axes: Any) -> None:
        width = 0.8 / max(1, len(counts))
        for i, (name, of) in enumerate(counts.items()):
            shares = np.array([of.get(str(score), 0) for score in range(6)], float)
            places = np.arange(6) + (i - (len(counts) - 1) / 2) * width
            axes.bar(places, 100 * shares / max(1.0, shares.sum()), width, color=SERIES[i % len(SERIES)], label=name)
        axes.set_xticks(range(6))
        axes.set_ylabel("% of votes")
        axes.grid(axis="x", visible=False)
        axes.legend()

    return _drawn(label, draw)


def lengths(found: Mapping[str, Sequence[int]], label: str) -> str:
    """How long the answers of each model are, in characters; what is longer than 99 % of all is left out."""

    def draw(axes: Any) -> None:
        top = np.quantile(np.concatenate([np.asarray(of) for of in found.values()]), 0.99)
        edges = np.linspace(0, max(1.0, top), 31)
        for i, (name, of) in enumerate(found.items()):
            shares = np.histogram(of, edges)[0] / max(1, len(of))
            axes.stairs(100 * shares, edges, color=SERIES[i % len(SERIES)], label=name, linewidth=1.4)
        axes.set_xlabel("characters")
        axes.set_ylabel("% of answers")
        axes.legend()

    return _drawn(label, draw)


def curves(found: Mapping[str, Curve], label: str) -> str:
    """Lines over training steps; of a long one means of as many stretches as it may have points."""

    def draw(axes: Any) -> None:
        for i, (name, points) in enumerate(found.items()):
            axes.plot(*_thinned(points), color=SERIES[i % len(SERIES)], label=name, linewidth=1.2)
        axes.set_xlabel("step")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.legend()

    return _drawn(label, draw)


def _thinned(points: Curve) -> np.ndarray:
    parts = np.array_split(np.asarray(points, float), min(MAX_POINTS, len(points)))
    return np.array([part.mean(0) for part in parts]).T


def _drawn(label: str, draw: Any, width: float = 4.2, height: float = 2.7) -> str:
    """The chart; sizes in inches, at which its letters are as large as the page's."""
    with rc_context(_STYLE | {"svg.hashsalt": label}), io.BytesIO() as out:
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.subplots()
        draw(axes)
        axes.set_title(label)
        figure.savefig(
            out, format="svg", transparent=True, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type"))
        )
        return _themed(out.getvalue(), label)


def _themed(svg: bytes, label: str) -> str:
    """The drawing without styles, which a page's policy forbids: each becomes an attribute, its colours variables."""
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
        if "fill" in element.attrib:
            element.set("fill", _VARIABLES.get(element.get("fill"), element.get("fill")))
    for element in root.iter():
        if element.get("id") and element.get("id") not in used:
            del element.attrib["id"]
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    root.set("role", "img")
    root.set("aria-label", label)
    return ElementTree.tostring(root, encoding="unicode")
