"""Results: what the answers of one checkpoint amount to, a line per eval and metric, each with its interval.

In: answers (forced_choice.py) and bits per row (base_text.py). Out: the lines of `results.jsonl`, arm and seed apart.
"""

import dataclasses

import numpy as np

from msmjax.evals import statistics


def headline_metric(eval_name: str) -> str:
    """The metric an eval is compared by."""
    return "bits_per_byte" if eval_name == "base_text" else "choice"


def lines(answers: list[dict], bits: np.ndarray, sizes: np.ndarray) -> list[dict]:
    """One line per eval and metric. Intervals of one seed: Wilson over items, and a bootstrap over rows for bits per byte."""
    out = []
    for name in dict.fromkeys(answer["eval"] for answer in answers):
        mine = [answer for answer in answers if answer["eval"] == name]
        decided = sum(answer["decided"] for answer in mine) / len(mine)
        for metric in ("choice", "probability"):
            value = sum(answer[metric] for answer in mine) / len(mine)
            low, high = statistics.wilson(value, len(mine))
            out.append(
                {"eval": name, "metric": metric, "value": value, "low": low, "high": high, "n": len(mine), "decided": decided}
            )
    interval = statistics.ratio_interval(bits, sizes)
    out.append({"eval": "base_text", "metric": "bits_per_byte", **dataclasses.asdict(interval), "decided": None})
    return out
