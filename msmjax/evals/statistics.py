"""Statistics: the interval behind every number, over items, over seeds, or over rows.

In: numbers. Out: values with intervals. Two sources of chance are kept apart: seeds (would another training run say the
same?) and items (would another set of questions say the same?). Numpy and scipy only; nothing here knows what an arm is.
"""

import dataclasses
from collections.abc import Hashable, Sequence

import numpy as np
from scipy import special

RESAMPLES = 2000  # bootstrap resamples: the ends of a 95 % interval rest on 50 of them each


@dataclasses.dataclass(frozen=True)
class Interval:
    """A value, its interval, and how many observations they rest on; `low` and `high` are None where n is too small."""

    value: float
    low: float | None
    high: float | None
    n: int


@dataclasses.dataclass(frozen=True)
class PairedDifference:
    """Arm minus other arm: `over_seeds` and `over_items` share the value and differ in what is taken to be chance."""

    over_seeds: Interval
    over_items: Interval
    per_seed: tuple[float, ...]


def wilson(p: float, n: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson score interval of a share `p` of `n` items; ties and halves may make `p * n` fractional.

    (p + z²/2n ± z √(p(1-p)/n + z²/4n²)) / (1 + z²/n), Wilson 1927 (JASA 22:209), without continuity correction.
    """
    if not 0 <= p <= 1 or n < 1:
        raise ValueError(f"a share of items is needed: p={p}, n={n}")
    z = special.ndtri((1 + level) / 2)
    centre = p + z * z / (2 * n)
    half = z * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    return max(0.0, float((centre - half) / scale)), min(1.0, float((centre + half) / scale))


def seed_interval(values: Sequence[float], level: float = 0.95) -> Interval:
    """Mean and Student t interval: mean ± t(n-1) s/√n (Student 1908, Biometrika 6:1), s with n - 1 degrees of freedom.

    One seed has no spread: `low` and `high` are then None.
    """
    array = np.asarray(values, float)
    if array.ndim != 1 or not len(array):
        raise ValueError(f"one value a seed is needed, at least one: shape {array.shape}")
    n, mean = len(array), float(array.mean())
    if n == 1:
        return Interval(mean, None, None, n)
    half = float(special.stdtrit(n - 1, (1 + level) / 2) * array.std(ddof=1) / np.sqrt(n))
    return Interval(mean, mean - half, mean + half, n)


def clustered(values: Sequence[float], clusters: Sequence[Hashable], level: float = 0.95) -> Interval:
    """Mean of answers to questions that come in clusters (a passage, a scenario, a family), and its interval.

    The standard error is that of arXiv 2411.00640, section 2.2: √(Σ over clusters of (Σ in it of (value - mean))²) / n; the
    interval is ± t(clusters - 1) times it, since clusters are few. One cluster has no spread: `low` and `high` are then None.
    """
    array = np.asarray(values, float)
    if array.ndim != 1 or len(array) != len(clusters) or not len(array):
        raise ValueError(f"one cluster a value is needed: {array.shape} values and {len(clusters)} clusters")
    of_cluster: dict[Hashable, float] = {}
    mean = float(array.mean())
    for cluster, residual in zip(clusters, (array - mean).tolist(), strict=True):
        of_cluster[cluster] = of_cluster.get(cluster, 0.0) + residual
    if len(of_cluster) == 1:
        return Interval(mean, None, None, len(array))
    error = np.sqrt(np.sum(np.square(list(of_cluster.values())))) / len(array)
    half = float(special.stdtrit(len(of_cluster) - 1, (1 + level) / 2) * error)
    return Interval(mean, mean - half, mean + half, len(array))


def paired_difference(
    a: np.ndarray,
    b: np.ndarray,
    level: float = 0.95,
    resamples: int = RESAMPLES,
    rng_seed: int = 0,
    clusters: Sequence[Hashable] | None = None,
) -> PairedDifference:
    """Mean of `a - b`, scores [seeds, items] of two arms on the same items and seeds.

    Over seeds: the t interval of the per-seed mean differences. Over items: the percentile bootstrap (Efron 1979, Annals of
    Statistics 7:1) of items, the same resample for both arms, with seeds averaged; of `clusters` of items where there are some.
    """
    a, b = np.asarray(a, float), np.asarray(b, float)
    if a.shape != b.shape or a.ndim != 2 or not a.size:
        raise ValueError(f"two equal, non-empty arrays [seeds, items] are needed: {a.shape} and {b.shape}")
    difference = a - b
    per_item = difference.mean(0)
    # Averaging over seeds commutes with resampling items, so one vector of item differences is all there is to resample.
    if clusters is not None and len(set(clusters)) < len(per_item):
        numbers = {cluster: number for number, cluster in enumerate(dict.fromkeys(clusters))}
        of_item = [numbers[cluster] for cluster in clusters]
        within = (
            ratio_interval(np.bincount(of_item, per_item), np.bincount(of_item), level, resamples, rng_seed)
            if len(numbers) > 1
            else Interval(0.0, None, None, 1)
        )
        low, high = within.low, within.high
    else:
        low, high = _percentiles([per_item[rows].mean() for rows in _resamples(len(per_item), resamples, rng_seed)], level)
    over_seeds = seed_interval(difference.mean(1), level)
    over_items = Interval(over_seeds.value, low, high, len(per_item))
    return PairedDifference(over_seeds, over_items, tuple(difference.mean(1).tolist()))


def ratio_interval(
    numerators: Sequence[float],
    denominators: Sequence[float],
    level: float = 0.95,
    resamples: int = RESAMPLES,
    rng_seed: int = 0,
) -> Interval:
    """Sum over sum (bits per byte), with the percentile bootstrap (Efron 1979) of rows, a row keeping both its numbers."""
    top, bottom = np.asarray(numerators, float), np.asarray(denominators, float)
    if top.shape != bottom.shape or top.ndim != 1 or not top.size:
        raise ValueError(f"two equal, non-empty arrays [rows] are needed: {top.shape} and {bottom.shape}")
    if (bottom <= 0).any():
        raise ValueError("every denominator must be positive")
    ratios = [top[rows].sum() / bottom[rows].sum() for rows in _resamples(len(top), resamples, rng_seed)]
    return Interval(float(top.sum() / bottom.sum()), *_percentiles(ratios, level), len(top))


def kappa(
    one: Sequence[float], other: Sequence[float], level: float = 0.95, resamples: int = RESAMPLES, rng_seed: int = 0
) -> Interval:
    """How far two raters agree beyond chance: Cohen's kappa, weighted by the square of the difference (Cohen 1968, Psychological
    Bulletin 70:213), with the percentile bootstrap of what was rated. Of two ratings, that is the unweighted one.

    1 - Σ (a - b)² / (Σ over all pairs (aᵢ - bⱼ)² / n). Where nobody's ratings vary and all agree it is 1.
    """
    a, b = np.asarray(one, float), np.asarray(other, float)
    if a.shape != b.shape or a.ndim != 1 or not a.size:
        raise ValueError(f"two equal, non-empty arrays are needed: {a.shape} and {b.shape}")

    def agreement(a: np.ndarray, b: np.ndarray) -> float:
        by_chance = a.var() + b.var() + (a.mean() - b.mean()) ** 2
        return 1.0 if by_chance == 0 else float(1 - np.mean((a - b) ** 2) / by_chance)

    if len(a) == 1:
        return Interval(agreement(a, b), None, None, 1)
    drawn = [agreement(a[rows], b[rows]) for rows in _resamples(len(a), resamples, rng_seed)]
    return Interval(agreement(a, b), *_percentiles(drawn, level), len(a))


def _resamples(n: int, resamples: int, rng_seed: int):
    rng = np.random.default_rng(rng_seed)
    return (rng.integers(n, size=n) for _ in range(resamples))


def _percentiles(values: list, level: float) -> tuple[float, float]:
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
