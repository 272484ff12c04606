"""Figures: results as SVG text that can stand inside a page.

In: Findings. Out: one small SVG a panel; the page lays panels side by side or, on a phone, one under another. Matplotlib's
object-oriented API alone: no pyplot, no display, no state between calls, and the same findings give the same bytes.
"""

import io
import itertools
import re
import textwrap

from msmjax.report import findings as found
from msmjax.report.findings import Findings

# Okabe and Ito's colour-blind safe set without its yellow (too faint on white), then Tol's muted ones.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000", "#882255", "#999933", "#332288")
STYLE = {
    "svg.fonttype": "none",  # text stays text: readable by a screen reader, found by a search
    "svg.hashsalt": "msmjax",
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#777777",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e6e6",
    "xtick.color": "#444444",
    "ytick.color": "#222222",
}
OVER_ITEMS = {"color": "#777777", "linewidth": 1.2}  # an interval over items; those over seeds are bold, in the arm's colour
WIDTH = 5.2  # inches of a panel: two fit on a laptop, and its text is still readable on a phone
NAME = 26  # characters of a line of an arm's name: the axes keep more than half of the width
TALL = 15  # rows from which on their scale stands above them too
CURVE_POINTS = 400  # points drawn of one curve


def headline(findings: Findings) -> dict[str, str]:
    """Eval -> panel: an arm a line, its mean with the interval over seeds, and each seed as a small dot.

    An arm that is one model has its value with the interval over items, thin and grey, and no dots.
    """
    return {name: _arms_panel(findings, name) for name in findings.headline}


def comparisons(findings: Findings) -> dict[str, str]:
    """Metric -> panel: a comparison a line, the interval over seeds (bold) and, where there is one, over items (thin)."""
    groups: dict[str, list] = {}
    for one in findings.compared:
        groups.setdefault(one.metric, []).append(one)
    return {metric: _comparisons_panel(findings, metric, group) for metric, group in groups.items()}


def ladders(findings: Findings) -> dict[str, str]:
    """Label -> panel: a curve a line, with its band of intervals over seeds, and each seed as a small dot."""
    return {ladder["label"]: _ladder_panel(findings, ladder) for ladder in findings.ladders}


def curves(findings: Findings) -> dict[str, str]:
    """Stage -> panel: its training loss by step, a line a seed."""
    stages: dict[str, dict[str, list[dict]]] = {}
    for name, lines in findings.curves.items():
        stage, _, seed = name.partition(" seed ")
        stages.setdefault(stage, {})[seed] = lines
    return {stage: _curve_panel(stage, seeds) for stage, seeds in stages.items()}


def colour(findings: Findings, arm: str) -> str:
    """The arm's colour, the same in every figure."""
    return COLOURS[list(findings.arms).index(arm) % len(COLOURS)]


def _arms_panel(findings: Findings, eval_name: str) -> str:
    metric = found.headline_metric(findings, eval_name)
    # Names are broken after their underscores.
    names = [textwrap.wrap(arm.replace("_", "_ "), NAME) for arm in findings.arms]
    pitch = 0.27 + 0.08 * (max(map(len, names)) - 1)  # inches

    def draw(figure):
        axes = figure.add_subplot()
        for row, arm in enumerate(findings.arms):
            shade = colour(findings, arm)
            seeds = found.per_seed(findings, arm, eval_name, metric)
            interval = found.measured(findings, arm, eval_name, metric)
            if interval is None:
                axes.text(0.02, row, "not measured", transform=axes.get_yaxis_transform(), va="center", color="#777777")
                continue
            if None in seeds:
                if interval.low is not None:
                    axes.hlines(row, *found.bounded(interval, metric), **OVER_ITEMS)
                seeds = {}
            elif interval.low is not None:
                axes.hlines(row, *found.bounded(interval, metric), color=shade, linewidth=2, alpha=0.75)
            axes.scatter(
                list(seeds.values()), [row + 0.07 / pitch] * len(seeds), s=9, color=shade, alpha=0.6, linewidth=0, clip_on=False
            )
            axes.scatter([interval.value], [row], s=42, color=shade, edgecolor="white", linewidth=0.8, zorder=3, clip_on=False)
        if metric in found.RANGES:
            low, high = found.RANGES[metric]
            ticks = [low + (high - low) * quarter / 4 for quarter in range(5)]
            axes.set_xlim(low, high)
            axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
            axes.axvline((low + high) / 2, color="#aaaaaa", linewidth=1, linestyle=(0, (3, 3)), zorder=1)
        else:
            axes.margins(x=0.08)
            axes.locator_params(axis="x", nbins=5)
        _rows(axes, ["\n".join(lines).replace("_ ", "_") for lines in names])
        axes.tick_params(axis="y", labelsize=10 if pitch < 0.3 else 8)
        _scale_above(axes, len(names))
        axes.set_xlabel("share choosing the counted option" if metric == found.CHOICE else metric.replace("_", " "))

    return _svg(f"{eval_name} by arm", pitch * len(names) + 0.75, draw)


def _comparisons_panel(findings: Findings, metric: str, group: list) -> str:
    labels = [textwrap.wrap(item.label, 58) or [""] for item in group]
    pitch = max(len(lines) for lines in labels) * 0.19 + 0.4  # inches: the label stands above its interval

    def draw(figure):
        axes = figure.add_subplot()
        for row, (item, lines) in enumerate(zip(group, labels, strict=True)):
            shade = colour(findings, item.arms[0])
            at = row + 1 - 0.2 / pitch
            if item.over_items is not None and item.over_items.low is not None:
                axes.hlines(at + 0.1 / pitch, *found.bounded(item.over_items, metric, len(item.arms)), **OVER_ITEMS)
            if item.over_seeds.low is not None:
                axes.hlines(at, *found.bounded(item.over_seeds, metric, len(item.arms)), color=shade, linewidth=2.5, alpha=0.75)
            values = list(item.per_seed.values())
            axes.scatter(values, [at - 0.09 / pitch] * len(values), s=9, color=shade, alpha=0.6, linewidth=0, clip_on=False)
            axes.scatter([item.over_seeds.value], [at], s=48, color=shade, edgecolor="white", linewidth=0.8, zorder=3)
            _label_above(axes, at, pitch, lines)
        if metric in found.RANGES:
            most = max(len(item.arms) for item in group) * (found.RANGES[metric][1] - found.RANGES[metric][0])
            ticks = [most * half / 2 for half in range(-2, 3)]
            axes.set_xlim(-1.02 * most, 1.02 * most)
            axes.set_xticks(ticks, [f"{tick:+g}" if tick else "0" for tick in ticks])
        else:
            axes.margins(x=0.1)
            axes.locator_params(axis="x", nbins=5)
        axes.axvline(0, color="#444444", linewidth=1, zorder=1)
        axes.set_ylim(len(group), 0)
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        _scale_above(axes, len(group))
        axes.set_xlabel(f"difference in {metric.replace('_', ' ')}")

    return _svg(f"differences in {metric}", pitch * len(group) + 0.65, draw)


def _curve_panel(stage: str, seeds: dict[str, list[dict]]) -> str:
    def draw(figure):
        axes = figure.add_subplot()
        for index, (seed, lines) in enumerate(seeds.items()):
            lines = lines[:: -(-len(lines) // CURVE_POINTS) or 1]
            label = f"seed {seed}" if seed else stage
            style = {"color": COLOURS[index % len(COLOURS)], "linewidth": 1.2, "alpha": 0.85, "label": label}
            axes.plot([line["step"] for line in lines], [line["loss"] for line in lines], **style)
        axes.set_xlabel("step")
        axes.set_ylabel("loss (nats a token)")
        axes.locator_params(nbins=5)
        if seeds:
            axes.legend(frameon=False, fontsize=9, loc="upper right", ncols=min(3, len(seeds)))

    return _svg(f"loss of {stage}", 2.6, draw)


def _ladder_panel(findings: Findings, ladder: dict) -> str:
    metric = found.headline_metric(findings, ladder["eval"])
    doses = sorted({dose for rungs in ladder["lines"].values() for dose, _ in rungs if dose})

    def draw(figure):
        axes = figure.add_subplot()
        for shade, (name, rungs) in zip(itertools.cycle(COLOURS), ladder["lines"].items()):
            measured = [
                (dose, arm, interval)
                for dose, arm in sorted(rungs)
                if (interval := found.measured(findings, arm, ladder["eval"], metric))
            ]
            axes.plot(
                [dose for dose, _, _ in measured],
                [interval.value for *_, interval in measured],
                marker="o",
                markersize=5,
                linewidth=1.6,
                color=shade,
                label=name,
            )
            spread = [(dose, *found.bounded(interval, metric)) for dose, _, interval in measured if interval.low is not None]
            if spread:
                axes.fill_between(*zip(*spread, strict=True), color=shade, alpha=0.15, linewidth=0)
            for dose, arm, _ in measured:
                values = list(found.per_seed(findings, arm, ladder["eval"], metric).values())
                axes.scatter([dose] * len(values), values, s=8, color=shade, alpha=0.5, linewidth=0, clip_on=False)
        if doses and doses[-1] >= 8 * doses[0]:
            axes.set_xscale("symlog", linthresh=doses[0])  # a dose of 0 has its place, too
        if metric in found.RANGES:
            axes.set_ylim(*found.RANGES[metric])
        axes.set_xlabel(ladder["dose"])
        axes.set_ylabel(f"{ladder['eval']}: {metric.replace('_', ' ')}")
        axes.legend(frameon=False, fontsize=9)

    return _svg(ladder["label"], 3.0, draw)


def claims(judged: list) -> str:
    """A claim a line: what was found, its interval over seeds (grey where the corrected p value is no sign), each seed as a dot.

    Differences, also of sums, are drawn as a share of what they could be, so that they stand on one scale.
    """
    labels = [textwrap.wrap(one.claim, 58) or [""] for one in judged]
    pitch = max(map(len, labels)) * 0.19 + 0.4  # inches

    def draw(figure):
        axes = figure.add_subplot()
        for row, (one, lines) in enumerate(zip(judged, labels, strict=True)):
            shade = {"holds": COLOURS[0], "does not hold": COLOURS[1]}.get(one.verdict, OVER_ITEMS["color"])
            least, most = found.RANGES.get(one.metric, (0, 1))  # what is not bounded is drawn as it is
            scale = one.summed * (most - least)
            at, values = row + 1 - 0.2 / pitch, [value / scale for value in one.per_seed.values()]
            if one.interval.low is not None:
                low, high = found.bounded(one.interval, one.metric, one.summed)
                axes.hlines(at, low / scale, high / scale, color=shade, linewidth=2.5, alpha=0.75)
            axes.scatter(values, [at - 0.09 / pitch] * len(values), s=9, color=shade, alpha=0.6, linewidth=0, clip_on=False)
            axes.scatter([one.interval.value / scale], [at], s=48, color=shade, edgecolor="white", linewidth=0.8, zorder=3)
            _label_above(axes, at, pitch, lines)
        axes.set_xlim(-1.02, 1.02)
        axes.axvline(0, color="#444444", linewidth=1, zorder=1)
        axes.set_ylim(len(judged), 0)
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        _scale_above(axes, len(judged))
        axes.set_xlabel("difference, of what it could be")

    return _svg("claims", pitch * len(judged) + 0.65, draw)


def lengths(words: list[int]) -> str:
    """How long texts are, as a histogram of their words."""

    def draw(figure):
        axes = figure.add_subplot()
        axes.hist(words, bins=min(30, max(5, len(set(words)))), color=COLOURS[0], alpha=0.85)
        axes.set_xlabel("words")
        axes.set_ylabel("records")
        axes.locator_params(nbins=5)

    return _svg("words", 2.2, draw)


def shares(name: str, counts: dict[str, int]) -> str:
    """Counts by label, the most frequent at the top."""

    def draw(figure):
        axes = figure.add_subplot()
        axes.barh(range(len(counts)), list(counts.values()), color=COLOURS[0], alpha=0.85)
        _rows(axes, [textwrap.shorten(label, 44, placeholder="…") for label in counts])
        axes.set_xlabel("records")
        axes.locator_params(axis="x", nbins=5)

    return _svg(name, 0.24 * len(counts) + 0.6, draw)


def _rows(axes, labels: list[str]) -> None:
    """Labels down the left, the first at the top."""
    axes.set_yticks(range(len(labels)), labels)
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)
    axes.spines["left"].set_visible(False)


def _label_above(axes, at: float, pitch: float, lines: list[str]) -> None:
    """A label of some lines above what is drawn at `at`, where rows are `pitch` inches apart."""
    text = axes.text(0, at - 0.15 / pitch, "\n".join(lines), transform=axes.get_yaxis_transform(), va="bottom", color="#222222")
    text.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 0.5})


def _scale_above(axes, rows: int) -> None:
    """Where there are so many rows that the scale below is far from the first, it stands above them too."""
    axes.tick_params(axis="x", top=rows >= TALL, labeltop=rows >= TALL)


def _svg(name: str, height: float, draw) -> str:
    """The SVG element of one figure, without prolog, metadata and the ids that would repeat from figure to figure."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    # The salt tells figures apart on one page: ids are hashes of what they name, and clip paths differ by figure.
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": f"{STYLE['svg.hashsalt']} {name}"}):
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        FigureCanvasSVG(figure)
        figure.patch.set_visible(False)
        draw(figure)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Type": None, "Format": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"\s*<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'<g id="[^"]*"', "<g", text)
    return text.replace("<svg ", '<svg aria-hidden="true" ', 1).strip()
