"""Log-probabilities of texts: what every eval that compares them, and bits per byte, is computed with.

In: ids, from where on they are scored, and parameters. Out: nats.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from msmjax.data.tokenizer import PAD
from msmjax.generation.generate import bucket
from msmjax.model import attention, transformer
from msmjax.model.transformer import ModelConfig
from msmjax.training import sharding, step

BATCH_ROWS = 256  # sequences scored at a time, at most
BATCH_TOKENS = 65_536  # and their tokens
CHUNK_POSITIONS = 4096  # positions of all rows whose logits exist at a time, at least LENGTH_MULTIPLE of each row
LENGTH_MULTIPLE = 16  # sequences are padded to a multiple of this, at least


def score(
    examples: list[tuple[list[int], int]], model: ModelConfig, params: dict, mesh: Mesh, greedy: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Negative log-probability, in nats, of each example's ids from its given position on, and how many ids those are or, where
    `greedy`, how many of them are not the likeliest; two arrays [examples].

    The longest first, and with each batch the next ones that are more than half as long.
    """
    order = sorted(range(len(examples)), key=lambda index: -len(examples[index][0]))
    nats, counts = np.zeros(len(examples), np.float32), np.zeros(len(examples), np.int32)
    start = 0
    while start < len(order):
        length = padded_length(len(examples[order[start]][0]))
        indices = order[start : start + rows_at_a_time(length, mesh)]
        indices = [index for index in indices if 2 * padded_length(len(examples[index][0])) > length]
        start += len(indices)
        tokens = np.full((len(indices), length), PAD, np.int32)
        segment_ids, loss_mask = np.zeros(tokens.shape, np.int32), np.zeros(tokens.shape, bool)
        for row, (ids, first) in enumerate(examples[index] for index in indices):
            tokens[row, : len(ids)], segment_ids[row, : len(ids)], loss_mask[row, first : len(ids)] = ids, 1, True
        batch = {"tokens": tokens, "segment_ids": segment_ids, "loss_mask": loss_mask}
        nats[indices], counts[indices] = row_nats(batch, model, params, mesh, segments=1, greedy=greedy)
    return nats, counts


def padded_length(length: int) -> int:
    """A multiple of LENGTH_MULTIPLE, and of a quarter of the power of two below: few lengths are few compilations."""
    multiple = max(LENGTH_MULTIPLE, (1 << (max(length, 1) - 1).bit_length()) // 8)
    return -(-length // multiple) * multiple


def row_nats(
    batch: dict[str, np.ndarray], model: ModelConfig, params: dict, mesh: Mesh, segments: int, greedy: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """`step.row_nats` or `row_misses` of any number of rows, as many at a time as BATCH_ROWS and BATCH_TOKENS allow, or a power of
    two that is enough.

    No row has more than `segments`; padding behind a single one need not be counted, since what comes later is not seen.
    """
    count, length = batch["tokens"].shape
    at_a_time = min(rows_at_a_time(length, mesh), bucket(count, sharding.row_devices(mesh)))
    compute = _compile(model, mesh, length, at_a_time, segments, greedy)
    parts = []
    for start in range(0, count, at_a_time):
        here = {name: array[start : start + at_a_time] for name, array in batch.items()}
        rows = len(here["tokens"])
        here = {name: np.pad(array, [(0, at_a_time - rows), (0, 0)]) for name, array in here.items()}
        placed = sharding.place_batch(mesh, at_a_time, lambda a, b, here=here: {n: x[a:b] for n, x in here.items()})
        parts.append([np.asarray(array)[:rows] for array in compute(params, placed)])
    return tuple(np.concatenate(arrays) for arrays in zip(*parts, strict=True))


def row_misses(
    config: ModelConfig, params: dict, batch: dict[str, jax.Array], chunk: int, place=attention.ONE_DEVICE, segments: int = 0
) -> tuple[jax.Array, jax.Array]:
    """As `step.row_nats`, but what is counted is the supervised tokens that are not the likeliest; two [B].

    Rows are of one segment.
    """
    x_BTD = transformer.forward(config, params, batch["tokens"], batch["segment_ids"], place, segments)
    targets_BT = jnp.roll(batch["tokens"], -1, axis=1)
    counts_BT = jnp.roll(batch["loss_mask"], -1, axis=1).at[:, -1].set(False)
    nats_B, misses_B = jnp.zeros(len(x_BTD), jnp.float32), jnp.zeros(len(x_BTD), jnp.int32)
    for start in range(0, x_BTD.shape[1], chunk):
        here = slice(start, start + chunk)
        logits_BTV = transformer.unembed(config, params, x_BTD[:, here]).astype(jnp.float32)
        right_BT = jnp.take_along_axis(logits_BTV, targets_BT[:, here, None], axis=-1)[..., 0]
        nats_BT = jax.nn.logsumexp(logits_BTV, axis=-1) - right_BT
        nats_B += jnp.sum(jnp.where(counts_BT[:, here], nats_BT, 0), axis=1)
        misses_B += jnp.sum(counts_BT[:, here] & (jnp.argmax(logits_BTV, axis=-1) != targets_BT[:, here]), axis=1)
    return nats_B, misses_B


def rows_at_a_time(length: int, mesh: Mesh | AbstractMesh) -> int:
    devices = sharding.row_devices(mesh)
    return max(min(BATCH_ROWS, BATCH_TOKENS // length) // devices, 1) * devices


def chunk_of(rows: int, length: int) -> int:
    """Positions of each row whose logits exist at a time."""
    return min(max(CHUNK_POSITIONS // rows, LENGTH_MULTIPLE), length)


@functools.lru_cache(maxsize=64)
def _compile(model: ModelConfig, mesh: Mesh, length: int, rows: int, segments: int, greedy: bool):
    place = sharding.Placement(mesh)
    if model.attention != "xla":  # not every back end takes the lengths that items have
        kind = attention.kind_of(place.device)
        back_end, _ = attention.resolve(attention.AUTO, *kind, length, model.head_dim, model.compute_dtype)
        model = dataclasses.replace(model, attention=back_end)
    compute = functools.partial(
        row_misses if greedy else step.row_nats, model, chunk=chunk_of(rows, length), place=place, segments=segments
    )
    return jax.jit(lambda params, batch: compute(params, batch), out_shardings=NamedSharding(mesh, PartitionSpec()))
