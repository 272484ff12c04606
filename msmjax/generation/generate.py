"""Generation: prompts are continued in batches, with a cache of keys and values, under one jit.

In: parameters and prompts as ids. Out: new ids.

Prompts of a batch begin at column 0 of the cache and are padded on the right to P columns, which causality hides from them; the
new tokens of all rows share the M columns that follow: one write a step, and S = P + M. Rotary positions are the row's own, without
the gap: a row's logits are those that `forward` computes of its ids alone.
"""

import functools
import itertools
from collections.abc import Callable, Collection

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from msmjax.artifact import BadInput
from msmjax.model.transformer import ModelConfig, angles_at, forward_cached, layers_of, prefill, unembed

BATCH_ROWS = 64  # prompts continued at a time
COLUMNS = 32  # columns for prompts are this times a power of two, those for new tokens a multiple of it


def generate(
    model: ModelConfig,
    params: dict,
    mesh: Mesh,
    prompts: list[list[int]],
    *,
    placement: Callable[[Mesh], Callable],
    stop: Collection[int],
    max_tokens: int,
    temperature: float,
    top_p: float,
    seed: int,
) -> list[list[int]]:
    """The new ids of each prompt, without the stop id that ended them: fewer than `max_tokens` if and only if one did.

    `placement` is training.sharding.Placement. Temperature 0 takes the likeliest id; above 0, the logits are divided by it, and the
    next id is drawn from the fewest likeliest whose probability reaches `top_p`. The noise of a draw is made of the seed, the
    prompt's index in `prompts` and the id's position alone, so that a row does not depend on the others (their lengths may move
    its logits by rounding), and a prompt that already has some of its new ids goes on to the same ones.
    Raises BadInput for a prompt or a setting that cannot be.
    """
    _check(model, prompts, stop, max_tokens, temperature, top_p, seed)
    run = _compile(model, mesh, placement, -(-max_tokens // COLUMNS) * COLUMNS)
    stops_V = np.isin(np.arange(model.vocab), list(stop))
    settings = (np.uint32(seed), stops_V, np.int32(max_tokens), np.float32(temperature), np.float32(top_p))
    new = [[] for _ in prompts]
    # Prompts of like length go together.
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    batch_rows = _bucket(BATCH_ROWS, mesh.size)
    for start in range(0, len(order), batch_rows):
        indices = order[start : start + batch_rows]
        rows_B = np.full(_bucket(len(indices), mesh.size), -1, np.int32)  # a row that is not there is -1
        rows_B[: len(indices)] = indices
        lengths_B = np.array([len(prompts[row]) if row >= 0 else 1 for row in rows_B], np.int32)
        tokens_BP = np.zeros((len(rows_B), _bucket(max(lengths_B), COLUMNS)), np.int32)
        for tokens_P, row, length in zip(tokens_BP, rows_B, lengths_B, strict=True):
            tokens_P[:length] = prompts[row] if row >= 0 else 0
        ids_BM = np.asarray(run(params, tokens_BP, lengths_B, rows_B, *settings))
        for index, ids_M in zip(indices, ids_BM[:, :max_tokens].tolist(), strict=False):
            new[index] = list(itertools.takewhile(lambda token: token not in stop, ids_M))
    return new


def decode(model: ModelConfig, params: dict, ids_B, step, lengths_B, width: int, cache, place) -> tuple[jax.Array, tuple]:
    """Logits [B, V] after `ids_B`, which are written to column P + `step` of the cache, and the cache; `width` is P.

    Step 0 takes the last ids of the prompts, as if they were new: what `prefill` wrote of them is not looked at.
    """
    columns_1S = jnp.arange(jax.tree.leaves(cache)[0].shape[-2])[None]
    mask_BS = (columns_1S < lengths_B[:, None] - 1) | ((columns_1S >= width) & (columns_1S <= width + step))
    angles = tuple(angles_BH[:, None] for angles_BH in angles_at(model, lengths_B - 1 + step))
    x_B1D, cache = forward_cached(model, params, ids_B[:, None], angles, mask_BS[:, None], cache, width + step, place)
    return unembed(model, params, x_B1D[:, 0]), cache


def choose(logits_BV, key, rows_B, positions_B, temperature, top_p) -> jax.Array:
    """The next id of each row, [B]; its key is made of the row's number and the position that the id will have."""

    def sample():
        scaled_BV = (logits_BV - jnp.max(logits_BV, axis=-1, keepdims=True)) / temperature
        scaled_BV = jax.lax.cond(top_p < 1, lambda: nucleus(scaled_BV, top_p), lambda: scaled_BV)
        keys_B = jax.vmap(lambda row, position: jax.random.fold_in(jax.random.fold_in(key, row), position))(rows_B, positions_B)
        return jax.vmap(jax.random.categorical)(keys_B, scaled_BV).astype(jnp.int32)

    return jax.lax.cond(temperature > 0, sample, lambda: jnp.argmax(logits_BV, axis=-1).astype(jnp.int32))


def nucleus(logits_BV: jax.Array, top_p) -> jax.Array:
    """-inf for all but the fewest likeliest ids whose probability reaches `top_p` (arXiv 1904.09751); of equals the lower."""
    order_BV = jnp.argsort(-logits_BV, axis=-1, stable=True)
    sums_BV = jnp.cumsum(jax.nn.softmax(jnp.take_along_axis(logits_BV, order_BV, axis=-1), axis=-1), axis=-1)
    before_BV = jnp.pad(sums_BV[:, :-1], [(0, 0), (1, 0)])  # the probability of all likelier ids: 0 for the first, which so stays
    kept_BV = jnp.put_along_axis(jnp.zeros_like(order_BV, bool), order_BV, before_BV < top_p, axis=-1, inplace=False)
    return jnp.where(kept_BV, logits_BV, -jnp.inf)


@functools.lru_cache(maxsize=8)
def _compile(model: ModelConfig, mesh: Mesh, placement, columns: int):
    """`run(params, tokens, lengths, rows, seed, stops, max_tokens, temperature, top_p) -> ids [B, columns]`."""
    place = placement(mesh)

    def run(params, tokens_BP, lengths_B, rows_B, seed, stops_V, max_tokens, temperature, top_p):
        # Once, and not at each token.
        params = jax.tree.map(lambda array: array.astype(model.compute_dtype), params)
        if not model.scan_layers:
            params |= {"blocks": layers_of(params)}
        tokens_BP, lengths_B, rows_B = place(tokens_BP, "BP"), place(lengths_B, "B"), place(rows_B, "B")
        key, width = jax.random.key(seed), tokens_BP.shape[1]

        def unfinished(state):
            step, _, done_B, _, _ = state
            return (step < max_tokens) & ~jnp.all(done_B)

        def extend(state):
            step, ids_B, done_B, new_BM, cache = state
            logits_BV, cache = decode(model, params, ids_B, step, lengths_B, width, cache, place)
            ids_B = choose(logits_BV, key, rows_B, lengths_B + step, temperature, top_p)
            new_BM = jax.lax.dynamic_update_index_in_dim(new_BM, ids_B, step, axis=1)
            return step + 1, ids_B, done_B | stops_V[ids_B], new_BM, cache

        cache = prefill(model, params, tokens_BP, columns, place)
        last_B = jnp.take_along_axis(tokens_BP, lengths_B[:, None] - 1, axis=1)[:, 0]
        nothing_BM = place(jnp.zeros((len(rows_B), columns), jnp.int32), "BM")
        return jax.lax.while_loop(unfinished, extend, (jnp.int32(0), last_B, rows_B < 0, nothing_BM, cache))[3]

    return jax.jit(run, out_shardings=NamedSharding(mesh, PartitionSpec()))


def _bucket(count: int, multiple: int) -> int:
    """The least `multiple` times a power of two that is no less than `count`: few shapes, so few compilations."""
    return multiple * (1 << (-(-int(count) // multiple) - 1).bit_length())


def _check(model: ModelConfig, prompts, stop, max_tokens: int, temperature: float, top_p: float, seed: int) -> None:
    for index, prompt in enumerate(prompts):
        if not prompt:
            raise BadInput(f"prompt {index} has no ids; at least one is needed to predict from")
        for token in (min(prompt), max(prompt)):
            if not 0 <= token < model.vocab:
                raise BadInput(f"prompt {index} has id {token}: the model has {model.vocab} ids")
    for token in stop:
        if not 0 <= token < model.vocab:
            raise BadInput(f"stop id {token}: the model has {model.vocab} ids")
    if max_tokens < 1:
        raise BadInput(f"max_tokens={max_tokens}: must be at least 1")
    if not 0 <= temperature < float("inf"):
        raise BadInput(f"temperature={temperature}: must be 0 or a number above")
    if not 0 < top_p <= 1:
        raise BadInput(f"top_p={top_p}: must be above 0 and at most 1")
    if not 0 <= seed < 2**32:
        raise BadInput(f"seed={seed}: must be from 0 to 2^32 - 1")
