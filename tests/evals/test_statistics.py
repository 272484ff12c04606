"""Every interval against scipy's, and the properties that make it one."""

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from msmjax.evals.statistics import Interval, clustered, paired_difference, ratio_interval, seed_interval, wilson

finite = st.floats(-100, 100, allow_nan=False)


@given(st.integers(1, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), st.sampled_from([0.8, 0.95, 0.99]))
def test_wilson_is_scipys(counts, level):
    k, n = counts
    theirs = scipy.stats.binomtest(k, n).proportion_ci(level, method="wilson")
    assert wilson(k / n, n, level) == pytest.approx((theirs.low, theirs.high), abs=1e-9)


@given(st.floats(0, 1), st.integers(1, 1000))
def test_wilson_of_a_fractional_share(p, n):
    low, high = wilson(p, n)
    assert 0 <= low <= p + 1e-12
    assert p - 1e-12 <= high <= 1
    flipped = wilson(1 - p, n)
    assert (1 - flipped[1], 1 - flipped[0]) == pytest.approx((low, high), abs=1e-9)


@pytest.mark.parametrize(("p", "n"), [(1.1, 10), (-0.1, 10), (0.5, 0)])
def test_wilson_refuses_what_is_no_share(p, n):
    with pytest.raises(ValueError, match="share"):
        wilson(p, n)


@given(st.lists(finite, min_size=2, max_size=8), st.sampled_from([0.9, 0.95]))
def test_seed_interval_is_scipys(values, level):
    ours = seed_interval(values, level)
    if np.ptp(values) > 1e-6:  # scipy gives nan where there is no spread
        theirs = scipy.stats.ttest_1samp(values, 0).confidence_interval(level)
        assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), rel=1e-6, abs=1e-6)
    assert ours.n == len(values)
    assert ours.value == pytest.approx(np.mean(values))


def test_seed_interval_of_one_seed_or_no_spread():
    assert seed_interval([0.7]) == Interval(0.7, None, None, 1)
    same = seed_interval([0.5, 0.5, 0.5])
    assert (same.low, same.high) == (0.5, 0.5)
    with pytest.raises(ValueError, match="at least one"):
        seed_interval([])


def test_clustered_is_statsmodels():
    """OLS on a constant, cov_type "cluster" without a correction for small samples, t with clusters - 1 (statsmodels 0.15.0)."""
    ours = clustered([1, 0, 1, 1, 0, 0, 1, 0, 1], "aabbbcccd")
    assert (ours.low, ours.high) == pytest.approx((0.24619003374785542, 0.8649210773632555), abs=1e-12)
    assert (ours.value, ours.n) == (pytest.approx(5 / 9), 9)


@given(st.lists(finite, min_size=2, max_size=8), st.integers(1, 5))
def test_answers_that_repeat_each_other_are_one(means, size):
    """Whatever their number; between clusters of one size it is the t interval of their means, of which n and not n - 1 is divided
    by."""
    k = len(means)
    ours = clustered(np.repeat(means, size), np.repeat(range(k), size))
    theirs = seed_interval(means)
    assert ours.value == pytest.approx(theirs.value)
    assert ours.high - ours.value == pytest.approx((theirs.high - theirs.value) * np.sqrt((k - 1) / k), abs=1e-9)
    assert ours.n == k * size


def test_one_cluster_has_no_spread():
    assert clustered([0.0, 1.0], "aa") == Interval(0.5, None, None, 2)
    with pytest.raises(ValueError, match="one cluster a value"):
        clustered([0.0, 1.0], "a")


def scores(seed, share, shape=(3, 60)):
    return (np.random.default_rng(seed).random((*shape, 2)) < share).mean(-1)


def test_paired_difference_over_seeds_and_items():
    a, b = scores(0, 0.8), scores(1, 0.4)
    ours = paired_difference(a, b, resamples=20_000)
    per_seed = a.mean(1) - b.mean(1)
    assert ours.per_seed == pytest.approx(per_seed)
    theirs = scipy.stats.ttest_rel(a.mean(1), b.mean(1)).confidence_interval()
    assert (ours.over_seeds.low, ours.over_seeds.high) == pytest.approx((theirs.low, theirs.high))
    theirs = scipy.stats.bootstrap(
        (a.mean(0), b.mean(0)),
        lambda x, y, axis=-1: x.mean(axis) - y.mean(axis),
        paired=True,
        method="percentile",
        n_resamples=20_000,
        rng=np.random.default_rng(5),
    ).confidence_interval
    assert (ours.over_items.low, ours.over_items.high) == pytest.approx((theirs.low, theirs.high), abs=0.006)
    assert ours.over_items.value == ours.over_seeds.value == pytest.approx(a.mean() - b.mean())
    assert (ours.over_seeds.n, ours.over_items.n) == (3, 60)


def test_pairing_cancels_what_items_share():
    hard = np.random.default_rng(2).random((1, 80))
    ours = paired_difference(hard + 0.1, hard)
    assert (ours.over_items.low, ours.over_items.high) == pytest.approx((0.1, 0.1))
    assert ours.over_seeds.low is None


def test_paired_difference_is_antisymmetric_and_reproducible():
    a, b = scores(3, 0.6), scores(4, 0.5)
    there, back = paired_difference(a, b), paired_difference(b, a)
    assert there == paired_difference(a, b)
    assert there.over_items.low == pytest.approx(-back.over_items.high)
    assert there.over_seeds.low == pytest.approx(-back.over_seeds.high)
    assert there.over_items != paired_difference(a, b, rng_seed=1).over_items


@pytest.mark.parametrize("shape", [(3, 59), (2, 60), (60,), (0, 60)])
def test_paired_difference_refuses_unequal_shapes(shape):
    with pytest.raises(ValueError, match=r"\[seeds, items\]"):
        paired_difference(np.zeros((3, 60)), np.zeros(shape))


def test_ratio_interval():
    rng = np.random.default_rng(0)
    sizes = rng.integers(100, 400, 50).astype(float)
    bits = sizes * rng.normal(1.3, 0.1, 50)
    ours = ratio_interval(bits, sizes, resamples=20_000)
    theirs = scipy.stats.bootstrap(
        (bits, sizes),
        lambda x, y, axis=-1: x.sum(axis) / y.sum(axis),
        paired=True,
        method="percentile",
        n_resamples=20_000,
        rng=np.random.default_rng(5),
    ).confidence_interval
    assert ours.value == pytest.approx(bits.sum() / sizes.sum())
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.001)
    assert ours.n == 50
    same = ratio_interval(2 * sizes, sizes)  # a constant ratio has no spread, whatever the rows weigh
    assert (same.low, same.high) == pytest.approx((2, 2))
    with pytest.raises(ValueError, match="equal"):
        ratio_interval(bits, sizes[1:])
    with pytest.raises(ValueError, match="positive"):
        ratio_interval(bits, sizes * 0)
