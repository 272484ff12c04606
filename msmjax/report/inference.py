"""Inference over seeds: what several claims may say at once, what so few seeds can show, how much a dose saves.

In: a number for each seed, or curves of them. Out: p values, Holm's correction, the smallest effect, a ratio of doses with its
interval. Numpy and scipy only; nothing here knows what an arm is.
"""

from collections.abc import Sequence

import numpy as np
from scipy import optimize, special, stats

from msmjax.evals.statistics import RESAMPLES, Interval


def p_value(values: Sequence[float]) -> float:
    """Two-sided p value of the mean of `values` being 0 (Student's t).

    nan for one value, and for two that are equal; 0 for more that are equal, or 1 if they are 0.
    """
    array = np.asarray(values, float)
    if len(array) < 2:
        return float("nan")
    if (spread := array.std(ddof=1)) < 1e-12:
        return float("nan") if len(array) == 2 else float(abs(array.mean()) < 1e-12)
    t = array.mean() / (spread / np.sqrt(len(array)))
    return float(2 * special.stdtr(len(array) - 1, -abs(t)))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction (Holm 1979, Scandinavian Journal of Statistics 6:65): each p value as it is among so many. Of
    families of claims that are all false, 5 % have any that is below .05 after it."""
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(np.argsort(p_values)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def corrected(values: Sequence[Sequence[float]]) -> list[float]:
    """Of each claim, which has a value for each seed, the p value by Holm's correction over all of them. It is nan where there is
    none (`p_value`), and such a claim still counts as one that was made."""
    alone = [p_value(each) for each in values]
    among = holm([1.0 if np.isnan(p) else p for p in alone])
    return [one if np.isnan(one) else other for one, other in zip(alone, among, strict=True)]


def smallest_effect(n: int, spread: float, level: float = 0.05, power: float = 0.8) -> float:
    """The mean that a two-sided t test at this level finds with this power in `n` values, at least two, whose standard deviation is
    `spread`."""
    if spread < 1e-12:
        return 0.0
    bound = special.stdtrit(n - 1, 1 - level / 2)

    def lacking(shift: float) -> float:  # t then follows the noncentral distribution; the other tail has nothing of it
        return stats.nct.sf(bound, n - 1, shift) - power

    most = bound + 1
    while lacking(most) < 0:
        most *= 1.5
    return float(optimize.brentq(lacking, 0, most) * spread / np.sqrt(n))


def dose_ratio(
    doses: Sequence[float], curve: np.ndarray, dose: float, level: np.ndarray, resamples: int = RESAMPLES, rng_seed: int = 0
) -> Interval:
    """How many times `dose` a curve takes to come as far as `level`.

    `doses` [D] are positive and rise, `curve` is [seeds, D], `level` [seeds]. Means over seeds, straight between doses on a
    logarithmic scale; the percentile bootstrap (Efron 1979) resamples seeds, the same for both. Infinite
    where the curve never comes there; where its first dose is far enough, that is the answer, though less might do.
    """
    curve, level = np.asarray(curve, float), np.asarray(level, float)
    seeds = np.random.default_rng(rng_seed).integers(len(level), size=(resamples, len(level)))
    ratios = [_reached(doses, curve[rows].mean(0), level[rows].mean()) / dose for rows in seeds]
    low, high = np.quantile(ratios, [0.025, 0.975], method="inverted_cdf")  # no mean of a number and infinity
    return Interval(_reached(doses, curve.mean(0), level.mean()) / dose, float(low), float(high), len(level))


def _reached(doses: Sequence[float], means: np.ndarray, level: float) -> float:
    """The first dose at which the means are at the level."""
    if means[0] >= level:
        return doses[0]
    for (one, below), (other, above) in zip(zip(doses, means, strict=True), zip(doses[1:], means[1:], strict=True), strict=False):
        if above >= level:
            return float(one * (other / one) ** ((level - below) / (above - below)))
    return float("inf")
