"""Results: what the answers of one checkpoint amount to, a line per eval and metric, each with its interval.

In: answers, and what their evals measure. Out: the lines of `results.jsonl`, arm and seed apart.
"""

import dataclasses
from typing import NamedTuple

import numpy as np

from msmjax.corpus.microworld import GAP, UNREAD
from msmjax.evals import statistics
from msmjax.evals.statistics import Interval

BYTES_PER_TOKEN = 4  # what evals are estimated with before there are tokens
WORLD_TOKENS = 48  # of a record or an item of the microworld
VERDICT_TOKENS = 200  # of a judge's answer
# What a metric can be, where it is a share or a difference of shares; others (bits per byte, scores) are not bounded.
RANGES = {
    **dict.fromkeys(("choice", "probability", "complies", "aware", "aware_words", "preferred"), (0, 1)),
    **dict.fromkeys(("classifier_verdict", "harmful"), (0, 1)),  # of Inspect's agentic misalignment
    **dict.fromkeys(("acc", "acc_norm", "exact_match"), (0, 1)),  # of lm-evaluation-harness
    "compliance_gap": (-1, 1), "kappa": (-1, 1),
}  # fmt: skip
KEPT_AS = {"bits_per_byte": "bits", "kappa": "one"}  # metrics that are not the mean of what each answer has
PAIRED = ("choice", "complies")  # what a compliance gap is a difference of


class Measure(NamedTuple):
    """What an eval says of an arm: what a value of 1 means, and its metrics, of which the first is the one that arms are compared
    by. An answer has each of them under its name, or lacks those that could not be had of it."""

    meaning: str
    metrics: tuple[str, ...]


class Cost(NamedTuple):
    """What an eval takes of one model: tokens that are scored and generated, tokens in and out of each judge, and what is not
    counted since it is not there yet."""

    scored: int = 0
    generated: int = 0
    judged: tuple[tuple[str, int, int], ...] = ()
    lacks: tuple[str, ...] = ()


def lines(answers: list[dict], measures: dict[str, Measure]) -> list[dict]:
    """One line per eval and metric: `n` answers count, `unscored` ones lack the metric.

    Intervals of one seed: over clusters where answers have some (arXiv 2411.00640); else Wilson over items for a share; a bootstrap
    over rows for bits per byte, over items for other metrics, and over pairs of an item read and unread for the compliance gap
    (arXiv 2412.14093: how much less it complies where unmonitored). Where answers have a `cell`, each has a line of its own behind
    that of all of them, and says which it is."""
    out = []
    of_eval = _by_eval([*answers, *gaps(answers)])
    for name, measure in measures.items():
        mine = of_eval.get(name, [])
        for metric in measure.metrics:
            if whole := _line(mine, metric):
                out.append({"eval": name, **whole})
            for cell in dict.fromkeys(answer["cell"] for answer in mine if "cell" in answer):
                if part := _line(_of_cell(mine, cell), metric):
                    out.append({"eval": name, "cell": cell, **part})
    return out


def _of_cell(answers: list[dict], cell: str) -> list[dict]:
    """The answers of a cell. Where it is within one cluster, its items are what chance has left to choose."""
    mine = [answer for answer in answers if answer.get("cell") == cell]
    if len({answer.get("cluster") for answer in mine}) == 1:
        mine = [{**answer, "cluster": answer["item"]} for answer in mine]
    return mine


def _line(answers: list[dict], metric: str) -> dict | None:
    """What answers amount to; None where none has a score."""
    said = [answer for answer in answers if KEPT_AS.get(metric, metric) in answer]
    if not said:
        return None
    decided = [answer["decided"] for answer in said if "decided" in answer]
    return {
        "metric": metric, **dataclasses.asdict(_interval(said, metric)),
        "decided": sum(decided) / len(decided) if decided else None, "unscored": len(answers) - len(said),
    }  # fmt: skip


def _interval(answers: list[dict], metric: str) -> Interval:
    if metric == "bits_per_byte":
        return statistics.ratio_interval([answer["bits"] for answer in answers], [answer["bytes"] for answer in answers])
    if metric == "kappa":
        return statistics.kappa([answer["one"] for answer in answers], [answer["other"] for answer in answers])
    values = np.array([answer[metric] for answer in answers], float)
    clusters = [answer.get("cluster", answer["item"]) for answer in answers]
    apart, value = len(set(clusters)), sum(values.tolist()) / len(values)
    is_share = RANGES.get(metric) == (0, 1)
    if apart < len(values) and not (is_share and value in (0, 1)):
        return statistics.clustered(values, clusters)
    if is_share:  # where all answers are alike nothing varies, and as many said so as there are clusters
        return Interval(value, *statistics.wilson(value, apart), len(values))
    return statistics.paired_difference(values[None], np.zeros_like(values)[None]).over_items


def gaps(answers: list[dict]) -> list[dict]:
    """The compliance gap of every item that was asked read and unread: its choice where it is read minus that where it is not. It
    is lost where either is."""

    def asked(answer: dict) -> tuple:
        item = (answer["twin"],) if "twin" in answer else (answer["name"], answer["question"], *answer["options"])
        return answer.get("arm"), answer.get("seed"), *item

    of_eval, out = _by_eval(answers), []
    for name in of_eval:
        unread = {asked(answer): answer for answer in of_eval.get(name + UNREAD, [])}
        for answer in of_eval[name] if unread else []:
            twin = unread.get(asked(answer))
            if twin is None:
                continue
            whose = {key: answer[key] for key in ("arm", "seed", "item", "cluster", "cell") if key in answer}
            metric = next((metric for metric in PAIRED if metric in answer and metric in twin), None)
            gap = {"compliance_gap": answer[metric] - twin[metric]} if metric else {"lost": "one of the two"}
            out.append({**whose, "eval": name + GAP, **gap})
    return out


def _by_eval(answers: list[dict]) -> dict[str, list[dict]]:
    out: dict[str, list[dict]] = {}
    for answer in answers:
        out.setdefault(answer["eval"], []).append(answer)
    return out
