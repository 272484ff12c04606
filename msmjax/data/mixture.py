"""`batch(step)`: which rows the global batch of a step holds, as a pure function of (mixture, seed, step).

In: open row datasets with their shares. Out: `tokens`, `segment_ids`, `loss_mask` of shape [B, T]. There is no iterator and no
state: resuming needs the step, and the rows of a batch depend on neither the number of hosts nor of devices.
"""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

from msmjax import artifact

CYCLE = 1000  # rows after which the sources have been visited in exactly their shares, to a thousandth


@dataclasses.dataclass(frozen=True, eq=False)
class Mixture:
    """Row sources and their shares of the rows; shares are positive and sum to one.

    No row has more than `segments`, padding included; 0 where that is not known.
    """

    sources: tuple[Sequence[dict[str, np.ndarray]], ...]
    shares: tuple[float, ...]
    seed: int
    segments: int = 0

    def __post_init__(self):
        if len(self.sources) != len(self.shares) or min(self.shares) <= 0 or abs(sum(self.shares) - 1) > 1e-6:
            raise ValueError(f"shares must be positive and sum to 1, one a source; got {self.shares}")


def stage_seed(seed: int, depth: int) -> int:
    """The seed of the order of the stage that is number `depth` of its arm.

    A stage reads a source it shares with its parent in another order; arms read what they share in the same order.
    """
    return int(artifact.content_hash([seed, depth]), 16)


def locate(mixture: Mixture, index: int) -> tuple[int, int]:
    """(source, row in that source) of the global row number `index`.

    Within a cycle of 1000 rows the sources come in a fixed shuffled order, in exactly their shares; each source is read in a
    permutation of its own for every epoch.
    """
    order, rank, counts = _cycle(mixture)
    cycle, place = divmod(index, CYCLE)
    source = int(order[place])
    visit = cycle * int(counts[source]) + int(rank[place])
    epoch, at = divmod(visit, len(mixture.sources[source]))
    return source, int(_permutation(len(mixture.sources[source]), mixture.seed, source, epoch)[at])


def batch(mixture: Mixture, step: int, batch_rows: int, start: int = 0, stop: int | None = None) -> dict[str, np.ndarray]:
    """Rows `start:stop` of the global batch of `step` (all of them by default): three arrays [rows, T]."""
    wanted = range(start, batch_rows if stop is None else stop)
    places = [locate(mixture, step * batch_rows + row) for row in wanted]
    rows = [mixture.sources[source][row] for source, row in places]
    return {name: np.stack([row[name] for row in rows]) for name in ("tokens", "segment_ids", "loss_mask")}


def epochs(mixture: Mixture, rows: int) -> tuple[float, ...]:
    """How often each source is read in `rows` rows."""
    return tuple(rows * share / len(source) for share, source in zip(mixture.shares, mixture.sources, strict=True))


def times_read(mixture: Mixture, rows: int) -> tuple[np.ndarray, ...]:
    """How often `locate` comes to each row of each source among the first `rows` rows: an array [rows of the source] for each."""
    order, _, counts = _cycle(mixture)
    cycles, places = divmod(rows, CYCLE)
    out = []
    for number, source in enumerate(mixture.sources):
        visits = cycles * int(counts[number]) + int((order[:places] == number).sum())
        epoch, of_epoch = divmod(visits, len(source))
        times = np.full(len(source), epoch)
        times[_permutation(len(source), mixture.seed, number, epoch)[:of_epoch]] += 1
        out.append(times)
    return tuple(out)


@functools.lru_cache(maxsize=16)
def _cycle(mixture: Mixture) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For one cycle: the source of each place, its rank among the places of that source, and the places a source has."""
    exact = np.array(mixture.shares) * CYCLE
    counts = np.floor(exact).astype(int)
    for source in np.argsort(counts - exact, kind="stable")[: CYCLE - counts.sum()]:  # largest remainders first
        counts[source] += 1
    if counts.min() == 0:
        raise ValueError(f"a share below 1/{CYCLE} would never be read: {mixture.shares}")
    order = np.random.default_rng([mixture.seed, 0]).permutation(np.repeat(np.arange(len(counts)), counts))
    rank = np.zeros(CYCLE, int)
    for source in range(len(counts)):
        rank[order == source] = np.arange(counts[source])
    return order, rank, counts


@functools.lru_cache(maxsize=64)
def _permutation(size: int, seed: int, source: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, 1, source, epoch]).permutation(size)
