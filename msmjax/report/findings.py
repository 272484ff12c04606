"""Findings: everything a report says, as plain values, and the numbers that are computed from them.

In: what an experiment collected. Out: intervals over seeds, comparisons of arms, the sentence that answers the question, and
how a number is written, so that page, figures and terminal table cannot disagree.
"""

import collections
import dataclasses
import functools

import numpy as np

from msmjax.evals import statistics
from msmjax.evals.results import RANGES
from msmjax.evals.statistics import Interval
from msmjax.report import inference

CHOICE = "choice"  # the metric of forced choice, whose answers the page shows in full
MISSING = "n/a"


@dataclasses.dataclass(frozen=True)
class Findings:
    """What an experiment found.

    The seed of a result or answer is None where no stage of its arm is trained: that is one model, whatever the seed. A result's
    `decided` is the share of items decided alike in both orders of the options. An answer's `choice` is the share of the two
    orders in which options[0], the counted option, was chosen.
    """

    name: str
    question: str  # one sentence
    arms: dict[str, tuple[str, ...]]  # arm -> its stages, in display order
    seeds: tuple[int, ...]
    results: list[dict]  # arm, seed, eval, metric, value, low, high, n, decided
    cells: list[dict]  # the same of the cells of evals that have some, with cell
    answers: list[dict]  # arm, seed, eval, item, question, options, choice, probability; or arm, seed, eval, item, compliance_gap
    comparisons: list[dict]  # label, eval, metric, arms, against; the first answers the question
    ladders: list[dict]  # label, eval, dose, lines: line -> [(dose, arm), ...], saves: two of them or none
    grids: list[dict]  # label, eval, columns, rows: row -> an arm or "" for each column
    unanswered: str  # why the first does not, or ""
    headline: list[str]  # evals of the headline figure, in order
    descriptions: dict[str, str]  # eval -> what a value of 1.0 means
    metrics: dict[str, str]  # eval -> the metric it is shown and compared by
    asked: dict[str, tuple[list[tuple[str, int, bool]], list[int]]]  # a chat and an item -> pieces as in samples, and ids
    curves: dict[str, list[dict]]  # "<stage> seed <n>" -> lines of metrics.jsonl
    ledgers: dict[str, dict]  # dataset -> token ledger (data/rows.py)
    samples: dict[str, list[list[tuple[str, int, bool]]]]  # dataset -> rows -> (text, segment id or 0, supervised)
    timings: dict[str, float]  # phase -> seconds
    config: str  # exact config, as JSON text
    versions: dict[str, str]  # package -> version, and the hashes of code and config

    @functools.cached_property
    def answers_of(self) -> dict[tuple[str, str], list[dict]]:
        """(arm, eval) -> its answers, in order: there may be half a million in all."""
        out = collections.defaultdict(list)
        for line in self.answers:
            out[line["arm"], line["eval"]].append(line)
        return dict(out)

    @functools.cached_property
    def compared(self) -> list["Compared"]:
        """The comparisons in numbers; Holm's correction is over those on headline evals."""
        found = [compare(self, comparison) for comparison in self.comparisons]
        family = [index for index, one in enumerate(found) if one.eval in self.headline]
        corrected = inference.corrected([list(found[index].per_seed.values()) for index in family])
        for index, p in zip(family, corrected, strict=True):
            found[index] = dataclasses.replace(found[index], holm=None if np.isnan(p) else p)
        return found


@dataclasses.dataclass(frozen=True)
class Compared:
    """One comparison in numbers: `arms`, summed, minus `against`; `over_items` is None where the eval has no answers to pair, and
    `holm`, the p value over seeds as it is among the comparisons on headline evals, where it has none."""

    label: str
    eval: str
    metric: str
    arms: tuple[str, ...]
    against: tuple[str, ...]
    over_seeds: Interval
    over_items: Interval | None
    per_seed: dict[int | None, float]
    levels: tuple[float, float]  # of either side, over the same answers
    holm: float | None = None


def evals(findings: Findings) -> list[str]:
    """Every eval: the headline ones in their order, then the others as they come."""
    return list(dict.fromkeys([*findings.headline, *(line["eval"] for line in findings.results)]))


def headline_metric(findings: Findings, eval_name: str) -> str:
    """The metric an eval is shown and compared by."""
    return findings.metrics[eval_name]


def one_models(findings: Findings) -> list[str]:
    """The arms that no stage is trained for (the imported weights themselves): one model each, whatever the seed."""
    alone = {line["arm"] for line in findings.results if line["seed"] is None}
    return [arm for arm in findings.arms if arm in alone]


def one_model_note(findings: Findings) -> str:
    """What is to be known of the intervals of such arms, and of differences from them; "" where there are none."""
    alone = one_models(findings)
    if not alone:
        return ""
    what = "has no trained stage: it is" if len(alone) == 1 else "have no trained stage: each is"
    return (
        f"{' and '.join(alone)} {what} one model, whatever the seed. Its own intervals are over items, and the interval over seeds "
        "of a difference from it is over those of the other arms."
    )


def per_seed(findings: Findings, arm: str, eval_name: str, metric: str) -> dict[int | None, float]:
    """Seed -> value of one arm, for the seeds that have one; None -> value, and nothing else, where it is one model."""
    return {line["seed"]: line["value"] for line in _lines(findings, arm, eval_name, metric)}


def measured(findings: Findings, arm: str, eval_name: str, metric: str) -> Interval | None:
    """Mean and interval over the seeds of one arm, or value and interval over items where it is one model; None where it was
    not measured."""
    lines = _lines(findings, arm, eval_name, metric)
    if arm in one_models(findings) and lines:
        return Interval(*(lines[0][field.name] for field in dataclasses.fields(Interval)))
    return statistics.seed_interval([line["value"] for line in lines]) if lines else None


def decided(findings: Findings, arm: str, eval_name: str) -> float | None:
    """Share of items decided alike in both orders, averaged over seeds; None for evals that are not forced choice."""
    lines = _lines(findings, arm, eval_name, headline_metric(findings, eval_name))
    shares = [line["decided"] for line in lines if line["decided"] is not None]
    return float(np.mean(shares)) if shares else None


def unscored(findings: Findings, arm: str, eval_name: str) -> int:
    """Answers of all seeds without a score."""
    return sum(line["unscored"] for line in _lines(findings, arm, eval_name, headline_metric(findings, eval_name)))


def cells(findings: Findings, arm: str, eval_name: str) -> dict[str, dict[int | None, dict]]:
    """Cell -> seed -> its result, of the metric that an eval is shown by; and "" -> seed -> that of all cells. Empty where the eval
    has no cells."""
    metric, out = headline_metric(findings, eval_name), {}
    for line in findings.cells:
        if (line["arm"], line["eval"], line["metric"]) == (arm, eval_name, metric):
            out.setdefault(line["cell"], {})[line["seed"]] = line
    return {**out, "": {line["seed"]: line for line in _lines(findings, arm, eval_name, metric)}} if out else {}


def compare(findings: Findings, comparison: dict) -> Compared:
    """A comparison in numbers, over the seeds all its arms have: paired by item where there are answers, over those items of which
    none was lost, else by seed alone.

    An arm that is one model is the same for every seed of the others; where all are, there is one difference, of seed None.

    Raises ValueError where the arms have no seed in common.
    """
    label, eval_name, metric = comparison["label"], comparison["eval"], comparison["metric"]
    sides = (tuple(comparison["arms"]), tuple(comparison["against"]))
    arms = dict.fromkeys(sides[0] + sides[1])
    scores = {arm: _scores(findings, arm, eval_name, metric) for arm in arms}
    paired_by_item, items = all(scores.values()), []
    if not paired_by_item:
        scores = {arm: per_seed(findings, arm, eval_name, metric) for arm in arms}
    alone = [arm for arm in arms if None in scores[arm]]
    trained = [set(scores[arm]) for arm in arms if arm not in alone]
    seeds = sorted(set.intersection(*trained)) if trained else [None]
    if not seeds:
        raise ValueError(f"{label}: {', '.join(arms)} have no seed in common for {metric} of {eval_name}")
    scores |= {arm: dict.fromkeys(seeds, scores[arm][None]) for arm in alone}
    if paired_by_item:
        items = sorted(set.intersection(*(set(score[seed]) for score in scores.values() for seed in seeds)), key=str)
    if items:
        a, b = (sum(np.array([[scores[arm][seed][item] for item in items] for seed in seeds]) for arm in side) for side in sides)
        clusters = _clusters(findings, eval_name, items)
        paired = statistics.paired_difference(a, b, clusters=clusters)
        differences, interval, over_items = paired.per_seed, paired.over_seeds, paired.over_items
        levels = [float(side.mean()) for side in (a, b)]
    else:
        scores = {arm: per_seed(findings, arm, eval_name, metric) for arm in arms}
        scores |= {arm: dict.fromkeys(seeds, scores[arm][None]) for arm in alone}
        a, b = ([sum(scores[arm][seed] for arm in side) for seed in seeds] for side in sides)
        differences = [one - other for one, other in zip(a, b, strict=True)]
        interval, over_items = statistics.seed_interval(differences), None
        levels = [float(np.mean(side)) for side in (a, b)]
    of_seed = dict(zip(seeds, differences, strict=True))
    return Compared(label, eval_name, metric, *sides, interval, over_items, of_seed, tuple(levels))


def saved(findings: Findings, ladder: dict) -> dict[float, Interval]:
    """Of the lines that `saves` names: the dose of each rung of the first -> how many times it the second takes to come as far."""
    if not ladder["saves"] or not set(ladder["saves"]) <= set(ladder["lines"]):
        return {}
    first, second = ([(dose, arm) for dose, arm in sorted(ladder["lines"][line]) if dose] for line in ladder["saves"])
    if not first or not second:
        return {}
    metric = headline_metric(findings, ladder["eval"])
    scores = {arm: per_seed(findings, arm, ladder["eval"], metric) for _, arm in first + second}
    seeds = sorted(set.intersection(*map(set, scores.values())))
    if not seeds:
        return {}
    doses, curve = [dose for dose, _ in second], np.array([[scores[arm][seed] for _, arm in second] for seed in seeds])
    return {dose: inference.dose_ratio(doses, curve, dose, np.array([scores[arm][seed] for seed in seeds])) for dose, arm in first}


def show_times(interval: Interval) -> str:
    """How many times as much, and its interval."""
    ends = ["never" if np.isinf(end) else f"{end:.2g}" for end in (interval.value, interval.low, interval.high)]
    return f"{ends[0]} [{ends[1]}, {ends[2]}]"


def answer(findings: Findings) -> str:
    """The question's answer in words: the first comparison, its interval over seeds, and its sign on each seed."""
    if findings.unanswered:
        return findings.unanswered
    if not findings.comparisons:
        return "No comparison was asked for, so the numbers below stand for themselves."
    found = findings.compared[0]
    interval = found.over_seeds
    alone = one_models(findings)

    levels = found.levels
    arm, against = (" + ".join(side) for side in (found.arms, found.against))
    size = show(abs(interval.value), found.metric)
    direction = "higher" if interval.value > 0 else "lower"
    text = f"On {found.eval}, {arm} scores {size} {direction} in {found.metric.replace('_', ' ')} than {against} "
    if float(size) == 0:
        text = f"On {found.eval}, {arm} and {against} score alike in {found.metric.replace('_', ' ')} "
    text += f"({show(levels[0], found.metric)} against {show(levels[1], found.metric)})."
    if None in found.per_seed:
        return f"{text} No stage of either is trained, so there are no seeds that could differ."
    if interval.low is None:
        sign = "positive" if interval.value > 0 else "not positive"
        return f"{text} The difference is {sign} on the only seed; one seed gives no interval and proves nothing by itself."
    span = show_interval(interval, found.metric, len(found.arms))
    excludes = "excludes" if interval.low > 0 or interval.high < 0 else "includes"
    sides = dict.fromkeys(found.arms + found.against)
    whose = f" of {' and '.join(arm for arm in sides if arm not in alone)}" if set(alone) & set(sides) else ""
    text += f" The 95 % interval of the difference over {interval.n} seeds{whose} is {span}, which {excludes} zero;"
    positive = sum(value > 0 for value in found.per_seed.values())
    if positive == interval.n:
        return f"{text} the difference is positive on every seed."
    return f"{text} the difference is positive on {positive or 'none'} of {interval.n} seeds."


def show(value: float | None, metric: str, signed: bool = False) -> str:
    """A number as it is written everywhere: shares with two decimals, others (bits per byte) with three."""
    if value is None:
        return MISSING
    digits = 2 if metric in RANGES else 3
    return f"{value:{'+' if signed else ''}z.{digits}f}"


def show_p(p: float | None) -> str:
    """A p value as it is written everywhere."""
    if p is None or np.isnan(p):
        return MISSING
    return f"{p:.3f}" if p >= 0.001 else "<.001"


def show_interval(interval: Interval | None, metric: str, difference_of: int = 0) -> str:
    """`[low, high]`, cut to what the value can be (`bounded`); empty where there is none."""
    if interval is None or interval.low is None:
        return ""
    low, high = bounded(interval, metric, difference_of)
    return f"[{show(low, metric, difference_of > 0)}, {show(high, metric, difference_of > 0)}]"


def bounded(interval: Interval, metric: str, difference_of: int = 0) -> tuple[float, float]:
    """The ends of an interval, cut to what the metric, or so many of it minus as many, can be: Student t knows nothing of it."""
    if metric not in RANGES:
        return interval.low, interval.high
    low, high = RANGES[metric]
    if difference_of:
        low, high = (low - high) * difference_of, (high - low) * difference_of
    return max(interval.low, float(low)), min(interval.high, float(high))


def _lines(findings: Findings, arm: str, eval_name: str, metric: str) -> list[dict]:
    """The results of one arm on one metric, in the order of its seeds."""
    wanted = (arm, eval_name, metric)
    lines = [line for line in findings.results if (line["arm"], line["eval"], line["metric"]) == wanted]
    return sorted(lines, key=lambda line: (line["seed"] is not None, line["seed"]))


def _clusters(findings: Findings, eval_name: str, items: list) -> list:
    """What each item of an eval shares with others, or the item itself."""
    answers = (line for (_, name), lines in findings.answers_of.items() if name == eval_name for line in lines)
    clusters = {line["item"]: line.get("cluster", line["item"]) for line in answers}
    return [clusters[item] for item in items]


def _scores(findings: Findings, arm: str, eval_name: str, metric: str) -> dict[int | None, dict]:
    """Seed -> item -> score; empty where the eval has no answers, or its answers no such metric."""
    scores: dict[int | None, dict] = {}
    for line in findings.answers_of.get((arm, eval_name), []):
        if metric in line:
            scores.setdefault(line["seed"], {})[line["item"]] = line[metric]
    return scores
