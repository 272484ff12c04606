"""Inference over seeds against scipy, and against what the corrections are defined by."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from msmjax.report import inference


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(-1, 1), min_size=2, max_size=12))
def test_p_values_are_scipys(values):
    if np.std(values) > 1e-6:
        assert inference.p_value(values) == pytest.approx(stats.ttest_1samp(values, 0).pvalue, abs=1e-9)


def test_p_values_without_spread():
    assert np.isnan(inference.p_value([0.5]))
    assert inference.p_value([0.5, 0.5, 0.5]) == 0
    assert inference.p_value([0.0, 0.0, 0.0]) == 1
    assert np.isnan(inference.p_value([0.5, 0.5]))  # two items of eight, alike on two seeds, are no certainty


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=7))
def test_holm_is_bonferroni_over_all_sets_that_a_claim_is_in(p_values):
    """The closed test (Marcus, Peritz and Gabriel 1976): a claim's p value is the largest of its sets' by Bonferroni."""
    indices = range(len(p_values))
    sets = [chosen for size in range(1, len(p_values) + 1) for chosen in itertools.combinations(indices, size)]
    bonferroni = {chosen: min(1.0, len(chosen) * min(p_values[i] for i in chosen)) for chosen in sets}
    closed = [max(p for chosen, p in bonferroni.items() if index in chosen) for index in indices]
    assert inference.holm(p_values) == pytest.approx(closed)


def test_a_claim_without_a_p_value_still_counts():
    """It was made: what is said of the others is corrected for it."""
    sure = [0.1, 0.3, 0.25, 0.2]
    p = inference.p_value(sure)
    assert inference.corrected([sure]) == [pytest.approx(p)]
    alone, missing = inference.corrected([sure, [0.7]])
    assert alone == pytest.approx(2 * p)
    assert np.isnan(missing)
    assert inference.corrected([]) == []


@pytest.mark.parametrize(("n", "spread"), [(3, 0.2), (10, 0.05), (40, 1.0)])
def test_the_smallest_effect_is_found_four_times_in_five(n, spread):
    effect = inference.smallest_effect(n, spread)
    drawn = np.random.default_rng(1).normal(effect, spread, size=(20_000, n))
    assert (stats.ttest_1samp(drawn, 0, axis=1).pvalue < 0.05).mean() == pytest.approx(0.8, abs=0.015)
    assert inference.smallest_effect(n, 0.0) == 0


def test_a_dose_is_found_where_the_curve_comes_as_far():
    doses, curve = (1, 10, 100), np.array([[0.0, 0.2, 0.6]] * 4)
    half_way = 10**1.5  # on a logarithmic scale
    assert inference.dose_ratio(doses, curve, 2, np.full(4, 0.4)).value == pytest.approx(half_way / 2)
    assert inference.dose_ratio(doses, curve, 2, np.full(4, -1.0)).value == pytest.approx(0.5)
    never = inference.dose_ratio(doses, curve, 2, np.full(4, 0.9))
    assert (never.value, never.low, never.high, never.n) == (np.inf, np.inf, np.inf, 4)


def test_the_interval_of_a_ratio_is_scipys_bootstrap():
    rng = np.random.default_rng(0)
    doses, curve, level = (1, 4, 16, 64), rng.normal([0.1, 0.3, 0.5, 0.9], 0.1, size=(10, 4)), rng.normal(0.55, 0.1, 10)

    def ratio(rows):
        return inference._reached(doses, curve[rows].mean(0), level[rows].mean()) / 2

    ours = inference.dose_ratio(doses, curve, 2, level, resamples=20_000)
    theirs = stats.bootstrap(
        (np.arange(10),), lambda rows: ratio(rows.astype(int)), n_resamples=20_000, method="percentile", vectorized=False, rng=1
    )  # fmt: skip
    assert ours.low == pytest.approx(theirs.confidence_interval.low, rel=0.05)
    assert ours.high == pytest.approx(theirs.confidence_interval.high, rel=0.05)
