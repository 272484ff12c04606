"""`batch(step)`: pure, in exact shares, independent of who reads which part of it."""

import collections

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from msmjax.data import mixture as mixtures
from msmjax.data.mixture import Mixture


def source(count, offset):
    return [{name: np.full(4, offset + row) for name in ("tokens", "segment_ids", "loss_mask")} for row in range(count)]


def make(shares=(0.1, 0.9), seed=0):
    return Mixture((source(7, 0), source(50, 100)), shares, seed)


@pytest.mark.parametrize("hosts", [1, 2, 4, 8])
def test_independent_of_host_count(hosts):
    """The parts that hosts read make up the batch that one host reads, at any step and in any order."""
    for step in (13, 0, 5):
        whole = mixtures.batch(make(), step, 8)
        size = 8 // hosts
        parts = [mixtures.batch(make(), step, 8, start, start + size) for start in range(0, 8, size)]
        for name, array in whole.items():
            np.testing.assert_array_equal(array, np.concatenate([part[name] for part in parts]))


def test_stages_of_an_arm_read_a_shared_source_in_orders_of_their_own():
    def order(seed, depth):
        mixture = make(seed=mixtures.stage_seed(seed, depth))
        return [mixtures.locate(mixture, index) for index in range(48)]

    orders = [order(seed, depth) for seed in (0, 1) for depth in (0, 1, 2)]
    assert orders == [order(seed, depth) for seed in (0, 1) for depth in (0, 1, 2)]
    assert all(one != other for i, one in enumerate(orders) for other in orders[:i])


def test_independent_of_batch_size_but_not_of_seed():
    def order(seed, batch_rows):
        batches = [mixtures.batch(make(seed=seed), step, batch_rows)["tokens"][:, 0] for step in range(48 // batch_rows)]
        return np.concatenate(batches).tolist()

    assert order(0, 4) == order(0, 16) == order(0, 48)
    assert order(0, 4) != order(1, 4)


@settings(max_examples=30, deadline=None)
@given(shares=st.lists(st.integers(1, 50), min_size=1, max_size=4), seed=st.integers(0, 5))
def test_shares_are_exact_in_every_cycle(shares, seed):
    shares = tuple(share / sum(shares) for share in shares)
    mixture = Mixture(tuple(source(11, 0) for _ in shares), shares, seed)
    for cycle in range(2):
        counts = collections.Counter(mixtures.locate(mixture, cycle * 1000 + i)[0] for i in range(1000))
        for index, share in enumerate(shares):
            assert abs(counts[index] - 1000 * share) < 1


def test_every_row_once_an_epoch_in_another_order_each():
    mixture = make(shares=(0.5, 0.5))
    visits = [row for which, row in (mixtures.locate(mixture, i) for i in range(3000)) if which == 1]
    first, second = visits[:50], visits[50:100]
    assert sorted(first) == sorted(second) == list(range(50))
    assert first != second


@pytest.mark.parametrize("shares", [(0.5, 0.6), (1.0, 0.0), (1.0,)])
def test_shares_that_are_none(shares):
    with pytest.raises(ValueError, match="shares must be positive"):
        make(shares=shares)


def test_a_share_that_would_never_be_read():
    with pytest.raises(ValueError, match="never be read"):
        mixtures.batch(make(shares=(0.0004, 0.9996)), 0, 4)
