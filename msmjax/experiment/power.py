"""Power: the smallest difference that each comparison of an experiment would find, before it is run.

In: an `ExperimentConfig` and the working directory, where an earlier run of it may say how far seeds and items spread. Out: for
each comparison, that difference over its seeds and over its items.
"""

import contextlib
import dataclasses
import tempfile
from pathlib import Path

import numpy as np
from scipy import special

from msmjax import artifact
from msmjax.artifact import BadInput
from msmjax.config import IMPORT, Comparison, ExperimentConfig
from msmjax.evals.results import RANGES
from msmjax.experiment.data import makers_of, read_items
from msmjax.report import inference


@dataclasses.dataclass(frozen=True)
class Smallest:
    """A difference that a two-sided test at 5 % finds four times in five, None where nothing says how far values spread or there
    are fewer than two; how many there are, in how many clusters; and the earlier run whose spread it is, "" where that is assumed.
    """

    difference: float | None
    n: int
    clusters: int
    run: str


def smallest(config: ExperimentConfig, workdir: Path) -> list[tuple[Comparison, str, Smallest, Smallest]]:
    """For each comparison that is made, those on headline evals first, its metric ("" where the eval is not known yet), and the
    smallest difference over seeds and over items.

    Where an earlier run of this experiment made the same comparison, its spread is taken. Else each arm's is the widest that its
    metric can have, half of its range (Popoviciu 1935), which for a share is that at one half; arms vary independently, and items
    of one cluster say the same. Values without a range have no such bound.
    """
    metrics, counts = _known(config)
    headline = config.headline or [name for name, metric in metrics.items() if metric != "bits_per_byte"]
    made = [one for one in config.comparisons if {*one.arms, *one.against} <= set(config.run)]
    run, earlier = _earlier(config, workdir)
    out = []
    for one in sorted(made, key=lambda one: one.eval not in headline):
        line = earlier.get((one.label, one.eval, one.arms, one.against), {"metric": "", "per_seed": {}, "over_items": None})
        metric, arms = metrics.get(one.eval, line["metric"]), [*one.arms, *one.against]
        low, high = RANGES.get(metric, (np.nan, np.nan))
        trained = [arm for arm in arms if set(config.arms[arm]) != {IMPORT}]
        seeds, per_seed = len(config.seeds) if trained else 0, list(line["per_seed"].values())
        if len(per_seed) > 1 and (of_seeds := float(np.std(per_seed, ddof=1))) > 1e-12:
            over_seeds = _smallest(seeds, seeds, of_seeds, run)
        else:
            over_seeds = _smallest(seeds, seeds, (high - low) / 2 * np.sqrt(len(trained)), "")
        within, (items, clusters) = line["over_items"], counts.get(one.eval, (0, 0))
        if within and within["low"] is not None and within["high"] > within["low"]:
            items, clusters = (items, clusters) if items else (within["n"], within["n"])
            error = (within["high"] - within["low"]) / 2 / special.ndtri(0.975) * np.sqrt(within["n"] / items)
            over_items = _smallest(items, clusters, float(error * np.sqrt(clusters)), run)
        else:
            over_items = _smallest(items, clusters, (high - low) / 2 * np.sqrt(len(arms)), "")
        out.append((one, metric, over_seeds, over_items))
    return out


def _smallest(n: int, clusters: int, spread: float, run: str) -> Smallest:
    known = clusters > 1 and np.isfinite(spread)
    return Smallest(inference.smallest_effect(clusters, spread) if known else None, n, clusters, run)


def _known(config: ExperimentConfig) -> tuple[dict[str, str], dict[str, tuple[int, int]]]:
    """By the names of the report, the metric of each eval and its answers of one model and their clusters, where files that say so
    are there. Nothing is kept of the items that are made for it."""
    metrics, counts = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for name, one in config.evals.items():
            items = None
            if not one.items_from(config.corpora):  # which a teacher may have to write
                with contextlib.suppress(BadInput):
                    made = one.items(Path(folder), name, config.corpora, makers_of(config, Path(folder)))
                    items = read_items({name: made})[name]
            try:
                measured = one.measures(name, items) or {}
            except BadInput:
                continue
            metrics |= {shown: measure.metrics[0] for shown, measure in measured.items()}
            counts |= one.counts(name, items)
    return metrics, counts


def _earlier(config: ExperimentConfig, workdir: Path) -> tuple[str, dict[tuple, dict]]:
    """The last run of this experiment, and its comparisons by what they compare."""
    runs = sorted(workdir.glob(f"{config.name}-*/comparisons.jsonl"), key=lambda path: path.stat().st_mtime)
    lines = artifact.read_jsonl(runs[-1]) if runs else []
    by_what = {(one["label"], one["eval"], tuple(one["arms"]), tuple(one["against"])): one for one in lines}
    return (runs[-1].parent.name if runs else ""), by_what
