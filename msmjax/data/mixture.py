"""`batch(step)`: which rows the global batch of a step holds, as a pure function of (mixture, seed, step).

In: open row datasets with their shares. Out: `tokens`, `segment_ids`, `loss_mask` of shape [B, T]. There is no iterator and no
state: resuming needs the step, and the rows of a batch depend on neither the number of hosts nor of devices.

A dose is exact: of the first n rows, a source with share s has n s, to less than one row, whatever n, seed and stage.
"""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

from msmjax import artifact


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


def stage_seed(seed: int, shuffle: int) -> int:
    """The seed of the permutations that the stages with this `shuffle` read their sources in, whatever arm they are in.

    Two stages of one `shuffle` read a source they share in the same order (`_permutation`): they differ in what they do not share.
    A stage that shares a source with its parent has another `shuffle` (config.py sees to it), and so reads it in another order.
    """
    return int(artifact.content_hash([seed, shuffle]), 16)


def locate(mixture: Mixture, index: int) -> tuple[int, int]:
    """(source, row in that source) of the global row number `index`.

    Each source is read in a permutation of its own for every epoch.
    """
    sources, visits = _order(mixture.shares, _at_least(index + 1))
    source = int(sources[index])
    epoch, at = divmod(int(visits[index]), len(mixture.sources[source]))
    return source, int(_permutation(mixture, source, epoch)[at])


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
    order, _ = _order(mixture.shares, _at_least(rows))
    out = []
    for number, source in enumerate(mixture.sources):
        epoch, of_epoch = divmod(int((order[:rows] == number).sum()), len(source))
        times = np.full(len(source), epoch)
        times[_permutation(mixture, number, epoch)[:of_epoch]] += 1
        out.append(times)
    return tuple(out)


def _at_least(rows: int) -> int:
    """A power of two, so that few orders are made on the way through a stage."""
    return max(1 << (rows - 1).bit_length(), 1024)


@functools.lru_cache(maxsize=16)
def _order(shares: tuple[float, ...], rows: int) -> tuple[np.ndarray, np.ndarray]:
    """The source of each of the first rows, and how often it was read before: two arrays [rows].

    Of the sources that are below their share once this row counts, the one whose next row is due first. This keeps every prefix
    within one row of every share, both above and below (Balinski and Young, The quota method of apportionment, 1975), which the
    largest deficit next does not for more than two sources.
    """
    order, visits = np.empty(rows, np.int16), np.empty(rows, np.int64)
    read, due = [0] * len(shares), [1 / share for share in shares]
    for row in range(rows):
        # A share times the rows so far is a whole number but for rounding where it should be one.
        below = [source for source, share in enumerate(shares) if read[source] < share * (row + 1) - 1e-9]
        source = min(below, key=due.__getitem__)
        order[row], visits[row] = source, read[source]
        read[source] += 1
        due[source] = (read[source] + 1) / shares[source]
    return order, visits


def _permutation(mixture: Mixture, source: int, epoch: int) -> np.ndarray:
    """The order of the rows of a source in an epoch, whatever the others are; but of two with as many rows, which may be the same
    records in two forms, the second has another."""
    sizes = [len(one) for one in mixture.sources]
    return _shuffled(sizes[source], mixture.seed, sizes[:source].count(sizes[source]), epoch)


@functools.lru_cache(maxsize=64)
def _shuffled(size: int, seed: int, number: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, number, epoch]).permutation(size)
