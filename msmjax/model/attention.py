"""Causal attention within segments, by the back end that a config names.

In: queries [B, T, N, H], keys and values [B, T, K, H], and where the segment of each position begins, [B, T]. Out: [B, T, N, H].
A query sees the keys from the start of its segment to itself, exactly, on every back end; none falls back to another.

    xla     ours, in blocks, for any device: scores exist for one block of queries and keys at a time, and blocks that no query
            may see are not computed
    splash  JAX's Pallas kernel for TPUs
    cudnn   cuDNN's flash attention for NVIDIA GPUs from Hopper on, bfloat16
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

BACK_ENDS = ("xla", "splash", "cudnn")
BLOCK = 256  # queries and keys whose scores `xla` has at a time
HIDDEN = -1e30  # the score of a key that is not seen: finite, so that a block without any makes no NaN


class OneDevice:
    """Where everything is on one device: what training.sharding.Placement is on a mesh."""

    def __call__(self, array: jax.Array, letters: str) -> jax.Array:
        return array

    def per_device(self, function: Callable, letters_in: tuple[str, ...], letters_out: str) -> Callable:
        return function


ONE_DEVICE = OneDevice()


def segment_starts(segment_ids_BT: jax.Array) -> jax.Array:
    """int32 [B, T]: where the run of equal ids that a position is in begins (padding is a segment like any other)."""
    changes_BT = segment_ids_BT != jnp.roll(segment_ids_BT, 1, axis=1)
    return jax.lax.cummax(jnp.where(changes_BT.at[:, 0].set(True), jnp.arange(segment_ids_BT.shape[1]), 0), axis=1)


def attention(back_end: str, q_BTNH: jax.Array, k_BTKH: jax.Array, v_BTKH: jax.Array, starts_BT: jax.Array) -> jax.Array:
    """One device's rows and heads."""
    return {"xla": xla}[back_end](q_BTNH, k_BTKH, v_BTKH, starts_BT)


def xla(q_BTNH: jax.Array, k_BTKH: jax.Array, v_BTKH: jax.Array, starts_BT: jax.Array) -> jax.Array:
    """Flash attention (arXiv 2307.08691) as loops: the softmax is summed up block by block of keys.

    X is G x Q: the queries of a block, for all heads that share keys. Layouts are those in which XLA's CPU products are fast.
    """
    B, T, N, H = q_BTNH.shape
    K = k_BTKH.shape[2]
    size = min(BLOCK, T)
    count = -(-T // size)

    def pad(array):
        return jnp.pad(array, [(0, 0), (0, count * size - T)] + [(0, 0)] * (array.ndim - 2), mode="edge")

    q_CBKXH = pad(q_BTNH * jnp.asarray(H**-0.5, q_BTNH.dtype)).reshape(B, count, size, K, N // K, H)
    q_CBKXH = q_CBKXH.transpose(1, 0, 3, 4, 2, 5).reshape(count, B, K, N // K * size, H)
    k_BKSH, v_BKSH = (pad(array).transpose(0, 2, 1, 3) for array in (k_BTKH, v_BTKH))
    out_CBKXH = _blocks(q_CBKXH, k_BKSH, v_BKSH, pad(starts_BT))
    out_BCQKGH = out_CBKXH.reshape(count, B, K, N // K, size, H).transpose(1, 0, 4, 2, 3, 5)
    return out_BCQKGH.reshape(B, count * size, N, H)[:, :T]


@jax.custom_vjp
def _blocks(q_CBKXH, k_BKSH, v_BKSH, starts_BS):
    return _blocks_forward(q_CBKXH, k_BKSH, v_BKSH, starts_BS)[0]


def _blocks_forward(q_CBKXH, k_BKSH, v_BKSH, starts_BS):
    size = starts_BS.shape[1] // len(q_CBKXH)

    def queries(_, part):
        index, q_BKXH = part

        def keys(block, carry):
            sums_BKXH, sum_BKX, most_BKX = carry
            scores_BKXS = _scores(q_BKXH, k_BKSH, starts_BS, index, block, size)
            new_BKX = jnp.maximum(most_BKX, jnp.max(scores_BKXS, axis=-1))
            weights_BKXS = jnp.exp(scores_BKXS - new_BKX[..., None])
            keep_BKX = jnp.exp(most_BKX - new_BKX)
            weighted_BKXH = _product("BKXS,BKSH->BKXH", weights_BKXS.astype(v_BKSH.dtype), _at(v_BKSH, block, size))
            sums_BKXH = sums_BKXH * keep_BKX[..., None] + weighted_BKXH
            return sums_BKXH, sum_BKX * keep_BKX + jnp.sum(weights_BKXS, axis=-1), new_BKX

        # The block of the queries themselves is the last, and shows each of them a key: what a block of hidden keys left is then
        # multiplied by 0.
        zero_BKX = jnp.zeros(q_BKXH.shape[:-1], jnp.float32)
        start = (jnp.zeros(q_BKXH.shape, jnp.float32), zero_BKX, zero_BKX + HIDDEN)
        sums_BKXH, sum_BKX, most_BKX = jax.lax.fori_loop(_first(starts_BS, index, size), index + 1, keys, start)
        return None, ((sums_BKXH / sum_BKX[..., None]).astype(q_BKXH.dtype), most_BKX + jnp.log(sum_BKX))

    _, (out_CBKXH, log_sums_CBKX) = jax.lax.scan(queries, None, (jnp.arange(len(q_CBKXH)), q_CBKXH))
    out_CBKXH, log_sums_CBKX = checkpoint_name(out_CBKXH, "attention"), checkpoint_name(log_sums_CBKX, "attention")
    return out_CBKXH, (q_CBKXH, k_BKSH, v_BKSH, starts_BS, out_CBKXH, log_sums_CBKX)


def _blocks_backward(residuals, d_out_CBKXH):
    q_CBKXH, k_BKSH, v_BKSH, starts_BS, out_CBKXH, log_sums_CBKX = residuals
    size = starts_BS.shape[1] // len(q_CBKXH)
    inner_CBKX = jnp.sum(out_CBKXH.astype(jnp.float32) * d_out_CBKXH.astype(jnp.float32), axis=-1)

    def queries(carry, part):
        index, q_BKXH, d_out_BKXH, log_sums_BKX, inner_BKX = part

        def keys(block, carry):
            d_q_BKXH, d_k_BKHS, d_v_BKHS = carry
            k_part, v_part = _at(k_BKSH, block, size), _at(v_BKSH, block, size)
            scores_BKXS = _scores(q_BKXH, k_BKSH, starts_BS, index, block, size)
            weights_BKXS = jnp.exp(scores_BKXS - log_sums_BKX[..., None])
            d_weights_BKXS = _product("BKXH,BKSH->BKXS", d_out_BKXH, v_part)
            d_scores_BKXS = (weights_BKXS * (d_weights_BKXS - inner_BKX[..., None])).astype(q_BKXH.dtype)
            d_v_BKHS = _add_at(d_v_BKHS, block, _product("BKXH,BKXS->BKHS", d_out_BKXH, weights_BKXS.astype(q_BKXH.dtype)))
            d_k_BKHS = _add_at(d_k_BKHS, block, _product("BKXH,BKXS->BKHS", q_BKXH, d_scores_BKXS))
            return d_q_BKXH + _product("BKXS,BKSH->BKXH", d_scores_BKXS, k_part), d_k_BKHS, d_v_BKHS

        start = (jnp.zeros(q_BKXH.shape, jnp.float32), *carry)
        d_q_BKXH, *carry = jax.lax.fori_loop(_first(starts_BS, index, size), index + 1, keys, start)
        return tuple(carry), d_q_BKXH.astype(q_BKXH.dtype)

    zeros_BKHS = jnp.zeros(k_BKSH.swapaxes(2, 3).shape, jnp.float32)
    parts = (jnp.arange(len(q_CBKXH)), q_CBKXH, d_out_CBKXH, log_sums_CBKX, inner_CBKX)
    (d_k_BKHS, d_v_BKHS), d_q_CBKXH = jax.lax.scan(queries, (zeros_BKHS, zeros_BKHS), parts)
    d_k_BKSH, d_v_BKSH = (array.swapaxes(2, 3).astype(k_BKSH.dtype) for array in (d_k_BKHS, d_v_BKHS))
    return d_q_CBKXH, d_k_BKSH, d_v_BKSH, None


_blocks.defvjp(_blocks_forward, _blocks_backward)


def _scores(q_BKXH, k_BKSH, starts_BS, index, block, size):
    """float32 scores of a block of queries and one of keys, HIDDEN where a query does not see a key."""
    scores_BKXS = _product("BKXH,BKSH->BKXS", q_BKXH, _at(k_BKSH, block, size))
    places_S, places_Q = block * size + jnp.arange(size), index * size + jnp.arange(size)
    starts_BQ = jax.lax.dynamic_slice_in_dim(starts_BS, index * size, size, axis=1)
    seen_BQS = (starts_BQ[:, :, None] <= places_S) & (places_S <= places_Q[:, None])
    B, K, X, _ = scores_BKXS.shape
    scores_BKGQS = scores_BKXS.reshape(B, K, X // size, size, size)
    return jnp.where(seen_BQS[:, None, None], scores_BKGQS, HIDDEN).reshape(scores_BKXS.shape)


def _first(starts_BS, index, size):
    """The first block of keys that any query of block `index` sees."""
    return jnp.min(jax.lax.dynamic_index_in_dim(starts_BS, index * size, axis=1)) // size


def _at(array_BKSH, block, size):
    return jax.lax.dynamic_slice_in_dim(array_BKSH, block * size, size, axis=2)


def _add_at(array_BKHS, block, part_BKHS):
    start = block * part_BKHS.shape[3]
    old = jax.lax.dynamic_slice_in_dim(array_BKHS, start, part_BKHS.shape[3], axis=3)
    return jax.lax.dynamic_update_slice_in_dim(array_BKHS, old + part_BKHS, start, axis=3)


_product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
