"""Gradients of single examples, projected: what influence is computed from.

In: parameters, and examples: ids of one document or one answer, and which of them count. Out: features, a row of numbers for each.

The gradient of an example's nats is formed for one example at a time within a batch (`vmap` of the train step's loss), and each of
its matrices [a, b] is multiplied by random signs from both sides, [k, a] and [b, k] (arXiv 2405.13954 does so for each layer):
inner products of features are, on average, those of gradients. The signs are made anew from a counter wherever they are needed, and
stored nowhere.
"""

import dataclasses
import functools
import zlib

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from msmjax.data.tokenizer import PAD
from msmjax.generation.generate import bucket
from msmjax.model import transformer
from msmjax.model.transformer import ModelConfig
from msmjax.ranges import Count, Positive
from msmjax.training import sharding, step
from msmjax.training.sharding import letters_of

LENGTH_MULTIPLE = 32  # examples are padded to this times a power of two
KEY = 20_1803_11  # of all projections: features of different runs can be compared


@dataclasses.dataclass(frozen=True)
class InfluenceConfig:
    """How influence is measured: what it looks at, and the memory that takes."""

    items: Count  # of an eval, that are looked at
    points: Count  # of a stage, at which gradients are taken: in the middle of as many equal parts of its last third
    size: Count  # numbers that are kept of the gradient of each matrix of each layer
    rows: Count  # gradients of single examples that exist at a time, on all devices
    background: Count  # examples of all that a stage reads, of which the Gauss-Newton matrix is
    damping: Positive  # added to its eigenvalues, as a share of their mean


@dataclasses.dataclass(frozen=True, eq=False)
class Example:
    """The ids of one document or answer, and which of them count, [T]."""

    ids: np.ndarray
    counts: np.ndarray

    @classmethod
    def answer(cls, ids: list[int], start: int) -> "Example":
        """What counts is from `start` on, as in evals/scoring.py."""
        return cls(np.array(ids, np.int32), np.arange(len(ids)) >= start)


def features(
    model: ModelConfig,
    params: dict,
    base: dict,
    scales: tuple[dict | None, ...],
    mesh: Mesh,
    examples: list[Example],
    size: int,
    batch_rows: int,
) -> np.ndarray:
    """float32 [scales, examples, F]: of each example's summed nats the projected gradient with respect to `params`, which is what a
    stage trains: all parameters, or with LoRA the adapter on `base`.

    Each matrix of each layer gives `size` numbers, a square. Each of `scales`, None or a tree like `params`, multiplies gradients
    before they are projected: with the roots of Adam's preconditioner an inner product is what a step of Adam along the one does to
    the other. Memory: `batch_rows` gradients exist at a time, or
    as many more as the mesh needs.
    """
    compute = _compile(model, mesh, size)
    batch_rows = rows_on(mesh, batch_rows)
    of_length: dict[int, list[int]] = {}
    for index, example in enumerate(examples):
        of_length.setdefault(bucket(len(example.ids), LENGTH_MULTIPLE), []).append(index)
    found = [np.empty(0)] * len(examples)  # of each [scales, F]
    for length, indices in of_length.items():
        for start in range(0, len(indices), batch_rows):
            here = indices[start : start + batch_rows]
            batch = {
                "tokens": np.full((batch_rows, length), PAD, np.int32),
                "segment_ids": np.zeros((batch_rows, length), np.int32),
                "loss_mask": np.zeros((batch_rows, length), bool),
            }
            for row, example in enumerate(examples[index] for index in here):
                batch["tokens"][row, : len(example.ids)] = example.ids
                batch["segment_ids"][row, : len(example.ids)] = 1
                batch["loss_mask"][row, : len(example.ids)] = example.counts
            for index, feature in zip(here, np.asarray(compute(params, base, scales, batch)), strict=False):
                found[index] = feature
    return np.stack(found, axis=1)


def rows_on(mesh: Mesh | AbstractMesh, rows: int) -> int:
    """At least `rows`, as many on each device that rows are spread over."""
    devices = sharding.row_devices(mesh)
    return -(-rows // devices) * devices


def preconditioner(state: dict, epsilon: float, b2: float) -> dict:
    """The roots of what Adam multiplies gradients with at a state: (sqrt(v) + epsilon)^-1/2, v without its bias to zero."""
    adam = next(part for part in state["optimizer"] if hasattr(part, "nu"))
    unbiased = 1 - b2 ** jnp.maximum(adam.count, 1)
    return jax.tree.map(lambda nu: jax.lax.rsqrt(jnp.sqrt(nu / unbiased) + epsilon), adam.nu)


def project(gradients: dict, size: int) -> jax.Array:
    """[F]: of each leaf and layer about `size` numbers, or all if it has no more."""
    out = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradients):
        key = jax.random.fold_in(jax.random.key(KEY), zlib.crc32(jax.tree_util.keystr(path).encode()))
        layers = leaf if letters_of(path).startswith("L") else leaf[None]
        matrices = layers.reshape(len(layers), int(np.prod(leaf.shape[-layers.ndim + 1 : -1])), leaf.shape[-1])
        keys = jax.random.split(key, len(layers))
        out.append(jax.vmap(functools.partial(_sketch, size=size))(keys, matrices).reshape(-1))
    return jnp.concatenate(out)


def _sketch(key: jax.Array, matrix: jax.Array, size: int) -> jax.Array:
    """About `size` numbers of a matrix [a, b]: as many of both sides, but a side that has no more is kept whole."""
    a, b = matrix.shape
    rows = min(a, max(int(size**0.5), size // b))
    columns = min(b, size // rows)
    left, right = jax.random.split(key)
    if rows < a:
        matrix = jax.random.rademacher(left, (rows, a), jnp.float32) @ matrix / rows**0.5
    if columns < b:
        matrix = matrix @ jax.random.rademacher(right, (b, columns), jnp.float32) / columns**0.5
    return matrix.reshape(-1)


@functools.lru_cache(maxsize=8)
def _compile(model: ModelConfig, mesh: Mesh, size: int):
    if model.attention != "xla":  # single rows of any length
        model = dataclasses.replace(model, attention="xla")

    def nats(params, base, row):
        whole = transformer.with_adapter(base, params) if model.lora_rank else params
        batch = jax.tree.map(lambda array_T: array_T[None], row)
        return step.loss_sum(model, whole, batch, chunk=LENGTH_MULTIPLE)[0]

    def one(params, base, scales, row):
        gradients = jax.grad(nats)(params, base, row)
        scaled = [gradients if scale is None else jax.tree.map(jnp.multiply, gradients, scale) for scale in scales]
        return jnp.stack([project(one, size) for one in scaled])

    def all_of(params, base, scales, batch):
        batch = jax.tree.map(lambda array: jax.lax.with_sharding_constraint(array, rows), batch)
        return jax.vmap(lambda row: one(params, base, scales, row))(batch)

    rows = NamedSharding(mesh, sharding.spec("BT", sharding.ACTIVATION_RULES))
    return jax.jit(all_of, out_shardings=NamedSharding(mesh, PartitionSpec()))
