"""Causal attention within segments, by the back end that a config names.

In: queries [B, T, N, H], keys and values [B, T, K, H], and where the segment of each position begins, [B, T]. Out: [B, T, N, H].
A query sees the keys from the start of its segment to itself and no others; no back end falls back to another.

    xla     ours, in blocks, for any device: scores exist for one block of queries and keys at a time, and blocks that no query
            may see are not computed
    splash  JAX's Pallas kernel for TPUs
    cudnn   cuDNN's flash attention, for NVIDIA GPUs from Hopper on, in bfloat16; a row has at most one segment for every
            CUDNN_SEGMENT positions

`auto` is none of them: `resolve` names the fastest that a machine can run, once, before anything is computed.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from msmjax.artifact import BadInput

BACK_ENDS = ("xla", "splash", "cudnn")
AUTO = "auto"
BLOCK = 256  # queries and keys whose scores `xla` has at a time
SPLASH_BLOCKS = (512, 256, 128)  # the largest that divides a row: smaller ones are slower, and lanes are 128
CUDNN_SEGMENT = 64
NAME = "attention"  # of what `keep_outputs` keeps
HIDDEN = -1e30  # the score of a key that is not seen: finite, so that a block without any makes no NaN


def keep_outputs(primitive, *_, **parameters) -> bool:
    """A policy of `jax.checkpoint`: attention's outputs are kept, and the sums that its backward pass needs beside them."""
    named = jax.checkpoint_policies.save_only_these_names(NAME)(primitive, *_, **parameters)
    return named or primitive.name == "dot_product_attention_fwd_wrapper"  # cuDNN's, whose sums cannot be named from outside


class OneDevice:
    """Where everything is on one device: what training.sharding.Placement is on a mesh."""

    @property
    def device(self) -> jax.Device:
        return jax.devices()[0]

    def __call__(self, array: jax.Array, letters: str) -> jax.Array:
        return array

    def per_device(self, function: Callable, letters_in: tuple[str, ...], letters_out: str) -> Callable:
        return function


ONE_DEVICE = OneDevice()


def segment_starts(segment_ids_BT: jax.Array) -> jax.Array:
    """int32 [B, T]: where the run of equal ids that a position is in begins (padding is a segment like any other)."""
    changes_BT = segment_ids_BT != jnp.roll(segment_ids_BT, 1, axis=1)
    places_BT = jax.lax.broadcasted_iota(jnp.int32, segment_ids_BT.shape, 1)
    return jax.lax.cummax(jnp.where(changes_BT.at[:, 0].set(True), places_BT, 0), axis=1)


def check(back_end: str, platform: str, capability: str, length: int, head_dim: int, dtype: str) -> None:
    """Raises BadInput where a back end cannot do rows of this length, heads of this size or this precision on a device.

    `platform` is JAX's word, cpu, gpu or tpu; `capability` is a GPU's compute capability, such as 9.0.
    """

    def need(true: bool, what: str) -> None:
        if not true:
            raise BadInput(f"model.attention={back_end!r}: {what}; model.attention='xla' runs anywhere")

    if back_end == "splash":
        need(platform == "tpu", f"needs a TPU, and this is a {platform}")
        need(length % SPLASH_BLOCKS[-1] == 0, f"needs rows of a multiple of {SPLASH_BLOCKS[-1]} tokens, and these have {length}")
    if back_end == "cudnn":
        hopper = platform == "gpu" and capability.replace(".", "").isdigit() and float(capability) >= 9
        found = f"{platform} {capability}".rstrip()
        need(hopper, f"needs an NVIDIA GPU of compute capability 9.0 (Hopper) or above, and this is a {found}")
        need(dtype == "bfloat16", f"needs model.compute_dtype='bfloat16', not {dtype!r}")
        need(head_dim % 8 == 0 and head_dim <= 256, f"needs a head_dim that is a multiple of 8 and at most 256, not {head_dim}")


def kind_of(device: jax.Device) -> tuple[str, str]:
    """Platform and capability, as `check` takes them."""
    return device.platform, str(getattr(device, "compute_capability", ""))


def resolve(wanted: str, platform: str, capability: str, length: int, head_dim: int, dtype: str) -> tuple[str, str]:
    """The back end that `wanted` is on such a device, and why it is not a faster one, or "".

    A named one is itself, and raises BadInput as `check` does; `auto` is the fastest whose `check` passes.
    """
    if wanted != AUTO:
        check(wanted, platform, capability, length, head_dim, dtype)
        return wanted, ""
    fast = {"tpu": "splash", "gpu": "cudnn"}.get(platform)  # a CPU has no faster one
    if fast is None:
        return "xla", ""
    try:
        check(fast, platform, capability, length, head_dim, dtype)
    except BadInput as error:
        return "xla", str(error).split(";")[0].replace(f"model.attention={fast!r}:", f"{fast}")
    return fast, ""


def most_segments(length: int) -> int:
    """The segments of a row that `cudnn` takes: its sums and its work grow with the number that it has place for."""
    return max(length // CUDNN_SEGMENT, 2)


def bound_of_rows(wanted: str, length: int, dtype: str) -> int:
    """The most segments that rows are packed with for a config that `cudnn` may compute, on this machine or another; else 0."""
    return most_segments(length) if wanted in (AUTO, "cudnn") and dtype == "bfloat16" else 0


def place_for(found: int, length: int) -> int:
    """The `segments` for rows that have `found` of them: few values, so few compilations."""
    return min(max(4, 1 << (found - 1).bit_length()), most_segments(length))


def check_segments(back_end: str, segment_ids_BT: np.ndarray, segments: int) -> None:
    """Raises BadInput where a row of a batch has more segments, padding included, than `attention` has place for."""
    if back_end != "cudnn":
        return
    most = segments or most_segments(segment_ids_BT.shape[1])
    found = int(1 + np.max(np.count_nonzero(np.diff(segment_ids_BT, axis=1), axis=1), initial=0))
    if found > most:
        raise BadInput(
            f"model.attention='cudnn': a row has {found} documents and padding, and there is place for {most}; "
            "model.attention='xla' takes any number"
        )


def attention(
    back_end: str, q_BTNH: jax.Array, k_BTKH: jax.Array, v_BTKH: jax.Array, starts_BT: jax.Array, place, segments: int = 0
) -> jax.Array:
    """The module's In and Out, each device with its own rows and heads. Raises BadInput as `check` does.

    No row has more than `segments` (0: `most_segments` of them). Where that is 1, what lies behind the first is not
    looked at.
    """
    check(back_end, *kind_of(place.device), q_BTNH.shape[1], q_BTNH.shape[3], q_BTNH.dtype.name)
    if back_end == "cudnn":
        grouped_offsets_are_right()  # remembered: within `per_device` nothing can be computed by itself where nobody compiles
    of_cudnn = functools.partial(cudnn, segments=segments or most_segments(q_BTNH.shape[1]))
    one_device = {"xla": xla, "splash": splash, "cudnn": of_cudnn}[back_end]
    return place.per_device(one_device, ("BTNH", "BTKH", "BTKH", "BT"), "BTNH")(q_BTNH, k_BTKH, v_BTKH, starts_BT)


def prove(back_end: str, heads: int, kv_heads: int, head_dim: int, dtype: str, device: jax.Device) -> None:
    """Raises BadInput where, on this device, a document's outputs or gradients change with another document of its row, or where
    they are not those of `xla`. A few small rows: it takes seconds, nearly all of them to compile."""
    segment_ids_BT = np.repeat([[1, 2, 3, 0], [1, 2, 2, 3]], 64, axis=1).astype(np.int32)
    starts_BT, inside_BT = segment_starts(jnp.asarray(segment_ids_BT)), segment_ids_BT == 2
    shapes = [(*segment_ids_BT.shape, count, head_dim) for count in (heads, kv_heads, kv_heads, heads)]
    arrays = [jax.random.normal(jax.random.key(i), shape, dtype) for i, shape in enumerate(shapes)]
    others = [jnp.where(inside_BT[:, :, None, None], array * 3 + 1, array) for array in arrays]

    @functools.partial(jax.jit, static_argnums=0)
    def out_and_gradients(name, *arrays):
        out, transpose = jax.vjp(lambda *inputs: attention(name, *inputs, starts_BT, ONE_DEVICE, segments=4), *arrays[:3])
        return out, *transpose(arrays[3])

    here = f"model.attention={back_end!r}: on this {device.device_kind}, with jax {jax.__version__}, it"
    instead = "take another version of jax or cuDNN, or model.attention='xla'"
    try:
        with jax.default_device(device):
            found, again, changed, right = (
                [np.asarray(array, np.float32) for array in out_and_gradients(name, *inputs)]
                for name, inputs in ((back_end, arrays), (back_end, arrays), (back_end, others), ("xla", arrays))
            )
    except (RuntimeError, NotImplementedError) as error:  # what JAX raises where cuDNN is missing, too old, or refuses
        raise BadInput(f"{here} does not run ({(str(error).splitlines() or [type(error).__name__])[0]}); {instead}") from None
    for one, two, other, expected in zip(found, again, changed, right, strict=True):
        noise = np.abs(one - two).max()  # cuDNN sums the gradient of queries in any order
        leaks = np.abs(one - other)[~inside_BT].max() > 4 * noise + 1e-2 * np.abs(one).max() * (noise > 0)
        if leaks or not np.abs(one - expected).max() <= 0.05 * np.abs(expected).max():
            what = "lets what is in one document change another" if leaks else "is not the function that it should be"
            raise BadInput(f"{here} {what}; {instead}")


def masked(q_BTNH: jax.Array, k_BKHS: jax.Array, v_BKSH: jax.Array, mask_BTS: jax.Array) -> jax.Array:
    """Attention to the keys that a mask shows, [B, T, N, H]; scores exist as a whole. It is for a few queries and a cache, whose
    layout lets a product read it as it lies: with keys as values are, or G and T apart, it takes a CPU more than twice as long."""
    B, T, N, H = q_BTNH.shape
    K = k_BKHS.shape[1]
    q_BKXH = q_BTNH.reshape(B, T, K, N // K, H).transpose(0, 2, 3, 1, 4).reshape(B, K, N // K * T, H)
    scores_BKXS = _product("BKXH,BKHS->BKXS", q_BKXH, k_BKHS) * H**-0.5
    scores_BKGTS = scores_BKXS.reshape(B, K, N // K, T, -1)
    weights_BKXS = jax.nn.softmax(jnp.where(mask_BTS[:, None, None], scores_BKGTS, HIDDEN), axis=-1).reshape(scores_BKXS.shape)
    out_BKXH = jnp.einsum("BKXS,BKSH->BKXH", weights_BKXS.astype(q_BTNH.dtype), v_BKSH)
    return out_BKXH.reshape(B, K, N // K, T, H).transpose(0, 3, 1, 2, 4).reshape(B, T, N, H)


def splash(q_BTNH: jax.Array, k_BTKH: jax.Array, v_BTKH: jax.Array, starts_BT: jax.Array, interpret: bool = False) -> jax.Array:
    """Splash attention of jax.experimental.pallas; interpreted, it runs on a CPU."""
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    _, T, N, H = q_BTNH.shape
    size = next(size for size in SPLASH_BLOCKS if T % size == 0)
    kernel = kernels.make_splash_mha(
        masks.MultiHeadMask([masks.CausalMask((T, T))] * N),
        block_sizes=kernels.BlockSizes(
            block_q=size, block_kv=size, block_q_dkv=size, block_kv_dkv=size, block_q_dq=size, block_kv_dq=size
        ),
        head_shards=1, q_seq_shards=1, residual_checkpoint_name=NAME, interpret=interpret,
    )  # fmt: skip
    scaled_BTNH = (q_BTNH.astype(jnp.float32) * H**-0.5).astype(q_BTNH.dtype)
    q_BNTH, k_BKTH, v_BKTH = (array.swapaxes(1, 2) for array in (scaled_BTNH, k_BTKH, v_BTKH))
    # Where a segment begins is an id of its own.
    return jax.vmap(kernel)(q_BNTH, k_BKTH, v_BKTH, kernels.SegmentIds(starts_BT, starts_BT)).swapaxes(1, 2)


def cudnn(q_BTNH: jax.Array, k_BTKH: jax.Array, v_BTKH: jax.Array, starts_BT: jax.Array, segments: int) -> jax.Array:
    """cuDNN's attention over packed segments (jax pull request 25812), by a module of JAX that is not public."""
    from jax._src.cudnn import fused_attention_stablehlo as fused

    causal = functools.partial(fused.dot_product_attention, scale=q_BTNH.shape[3] ** -0.5)
    if segments == 1:
        return causal(q_BTNH, k_BTKH, v_BTKH, mask_type=fused.MaskType.CAUSAL)
    if not grouped_offsets_are_right():
        k_BTKH, v_BTKH = (jnp.repeat(array, q_BTNH.shape[2] // k_BTKH.shape[2], axis=2) for array in (k_BTKH, v_BTKH))
    offsets_BM, lengths_BM, too_many = packed_segments(starts_BT, segments)
    out_BTNH = causal(
        q_BTNH, k_BTKH, v_BTKH, q_seqlen=lengths_BM, kv_seqlen=lengths_BM, q_offsets=offsets_BM, kv_offsets=offsets_BM,
        mask_type=fused.MaskType.PADDING_CAUSAL,
    )  # fmt: skip
    # A kernel without place for a segment must not train without it. Training asks `check_segments` first.
    return jnp.where(too_many, jnp.nan, out_BTNH)


@functools.cache
def grouped_offsets_are_right() -> bool:
    """Whether the installed JAX finds the keys of a segment where query heads share them. Before its pull request 39521 it looked
    behind them, without an error: every query head is then given keys of its own."""
    from jax._src.cudnn import fused_attention_stablehlo as fused

    with jax.ensure_compile_time_eval():
        lengths_BM, offsets_BM = jnp.array([[1, 1]], jnp.int32), jnp.array([[0, 1, -1]], jnp.int32)
        q_BTNH, k_BTKH = jnp.zeros((1, 2, 4, 8)), jnp.zeros((1, 2, 2, 8))
        *_, found_BM = fused._fix_seqlen_offsets(lengths_BM, lengths_BM, offsets_BM, offsets_BM, q_BTNH, k_BTKH)
        return int(found_BM[0, 1]) == 2 * 8  # the second segment begins after one token's two heads of keys


def packed_segments(starts_BT: jax.Array, most: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Segments as cuDNN wants them: where each begins, int32 [B, M + 1], and its length [B, M], both filled up with -1.

    M is `most`; the third says whether a row has more than that.
    """
    T = starts_BT.shape[1]
    places_BT = jax.lax.broadcasted_iota(jnp.int32, starts_BT.shape, 1)
    begins_BT = jnp.sort(jnp.where(starts_BT == places_BT, places_BT, T), axis=1)  # those that there are, then T
    begins_BT = jnp.pad(begins_BT, [(0, 0), (0, most + 1)], constant_values=T)
    begins_BM, ends_BM = begins_BT[:, :most], begins_BT[:, 1 : most + 1]
    lengths_BM = jnp.where(begins_BM < T, ends_BM - begins_BM, -1)
    offsets_BM = jnp.pad(jnp.where(begins_BM < T, begins_BM, -1), [(0, 0), (0, 1)], constant_values=-1)
    return offsets_BM, lengths_BM, jnp.any(begins_BT[:, most] < T)


def xla(q_BTNH: jax.Array, k_BTKH: jax.Array, v_BTKH: jax.Array, starts_BT: jax.Array) -> jax.Array:
    """Flash attention (arXiv 2307.08691) as loops: the softmax is summed up block by block of keys.

    C is the blocks of a row, Q the queries of one; P those of all rows, B x C; X the queries of one for all heads that share keys,
    G x Q. Layouts are those in which XLA's products are fast on a CPU.
    """
    B, T, N, H = q_BTNH.shape
    K = k_BTKH.shape[2]
    size = min(BLOCK, T)
    count = -(-T // size)

    def pad(array):
        return jnp.pad(array, [(0, 0), (0, count * size - T)] + [(0, 0)] * (array.ndim - 2))

    q_BCQKGH = pad(q_BTNH).reshape(B, count, size, K, N // K, H)
    q_PKXH = q_BCQKGH.transpose(0, 1, 3, 4, 2, 5).reshape(B * count, K, N // K * size, H)
    k_BKSH, v_BKSH = (pad(array).transpose(0, 2, 1, 3) for array in (k_BTKH, v_BTKH))
    out_BCKGQH = _blocks(q_PKXH, k_BKSH, v_BKSH, pad(starts_BT)).reshape(B, count, K, N // K, size, H)
    return out_BCKGQH.transpose(0, 1, 4, 2, 3, 5).reshape(B, count * size, N, H)[:, :T]


@jax.custom_vjp
def _blocks(q_PKXH, k_BKSH, v_BKSH, starts_BS):
    return _blocks_forward(q_PKXH, k_BKSH, v_BKSH, starts_BS)[0]


def _blocks_forward(q_PKXH, k_BKSH, v_BKSH, starts_BS):
    places_PQ, starts_PQ = _places(q_PKXH, starts_BS)

    def queries(_, part):
        row, q_KXH, places_Q, starts_Q = part

        def keys(block, carry):
            sums_KXH, sum_KX, most_KX = carry
            scores_KXS = _scores(q_KXH, _at(k_BKSH, row, block, places_Q), places_Q, starts_Q, block)
            new_KX = jnp.maximum(most_KX, jnp.max(scores_KXS, axis=-1))
            weights_KXS = jnp.exp(scores_KXS - new_KX[..., None])
            keep_KX = jnp.exp(most_KX - new_KX)
            weighted_KXH = _product("KXS,KSH->KXH", weights_KXS.astype(v_BKSH.dtype), _at(v_BKSH, row, block, places_Q))
            return sums_KXH * keep_KX[..., None] + weighted_KXH, sum_KX * keep_KX + jnp.sum(weights_KXS, axis=-1), new_KX

        # The queries' own block is the last, and shows each a key: what a block of hidden keys left is then multiplied by 0.
        zero_KX = jnp.zeros(q_KXH.shape[:-1], jnp.float32)
        start = (jnp.zeros(q_KXH.shape, jnp.float32), zero_KX, zero_KX + HIDDEN)
        sums_KXH, sum_KX, most_KX = jax.lax.fori_loop(*_seen_blocks(places_Q, starts_Q), keys, start)
        return None, ((sums_KXH / sum_KX[..., None]).astype(q_KXH.dtype), most_KX + jnp.log(sum_KX))

    _, (out_PKXH, log_sums_PKX) = jax.lax.scan(queries, None, (_rows(q_PKXH, k_BKSH), q_PKXH, places_PQ, starts_PQ))
    out_PKXH, log_sums_PKX = checkpoint_name(out_PKXH, NAME), checkpoint_name(log_sums_PKX, NAME)
    return out_PKXH, (q_PKXH, k_BKSH, v_BKSH, starts_BS, out_PKXH, log_sums_PKX)


def _blocks_backward(residuals, d_out_PKXH):
    q_PKXH, k_BKSH, v_BKSH, starts_BS, out_PKXH, log_sums_PKX = residuals
    places_PQ, starts_PQ = _places(q_PKXH, starts_BS)
    inner_PKX = jnp.sum(out_PKXH.astype(jnp.float32) * d_out_PKXH.astype(jnp.float32), axis=-1)

    def queries(carry, part):
        row, q_KXH, places_Q, starts_Q, d_out_KXH, log_sums_KX, inner_KX = part

        def keys(block, carry):
            d_q_KXH, d_k_BKHS, d_v_BKHS = carry
            k_KSH, v_KSH = (_at(array, row, block, places_Q) for array in (k_BKSH, v_BKSH))
            weights_KXS = jnp.exp(_scores(q_KXH, k_KSH, places_Q, starts_Q, block) - log_sums_KX[..., None])
            d_weights_KXS = _product("KXH,KSH->KXS", d_out_KXH, v_KSH)
            d_scores_KXS = weights_KXS * (d_weights_KXS - inner_KX[..., None]) * q_KXH.shape[2] ** -0.5
            d_scores_KXS = d_scores_KXS.astype(q_KXH.dtype)
            d_v_KHS = _product("KXH,KXS->KHS", d_out_KXH, weights_KXS.astype(q_KXH.dtype))
            d_k_KHS = _product("KXH,KXS->KHS", q_KXH, d_scores_KXS)
            d_q_KXH += _product("KXS,KSH->KXH", d_scores_KXS, k_KSH)
            return d_q_KXH, _add_at(d_k_BKHS, row, block, d_k_KHS), _add_at(d_v_BKHS, row, block, d_v_KHS)

        start = (jnp.zeros(q_KXH.shape, jnp.float32), *carry)
        d_q_KXH, *carry = jax.lax.fori_loop(*_seen_blocks(places_Q, starts_Q), keys, start)
        return tuple(carry), d_q_KXH.astype(q_KXH.dtype)

    zeros_BKHS = jnp.zeros(k_BKSH.swapaxes(2, 3).shape, jnp.float32)
    parts = (_rows(q_PKXH, k_BKSH), q_PKXH, places_PQ, starts_PQ, d_out_PKXH, log_sums_PKX, inner_PKX)
    (d_k_BKHS, d_v_BKHS), d_q_PKXH = jax.lax.scan(queries, (zeros_BKHS, zeros_BKHS), parts)
    return d_q_PKXH, *(array.swapaxes(2, 3).astype(k_BKSH.dtype) for array in (d_k_BKHS, d_v_BKHS)), None


_blocks.defvjp(_blocks_forward, _blocks_backward)


def _rows(q_PKXH, k_BKSH):
    """The row of each block of queries, [P]."""
    return jnp.arange(len(q_PKXH)) // (len(q_PKXH) // len(k_BKSH))


def _places(q_PKXH, starts_BS):
    """The column of each query and where its segment begins, two [P, Q]."""
    places_BS = jax.lax.broadcasted_iota(jnp.int32, starts_BS.shape, 1)
    return tuple(array_BS.reshape(len(q_PKXH), -1) for array_BS in (places_BS, starts_BS))


def _seen_blocks(places_Q, starts_Q):
    """The first block of keys that a block of queries sees, and the one after the last, its own."""
    return starts_Q[0] // len(places_Q), places_Q[0] // len(places_Q) + 1


def _scores(q_KXH, k_KSH, places_Q, starts_Q, block):
    """float32 scores, HIDDEN where a query does not see a key."""
    scores_KXS = _product("KXH,KSH->KXS", q_KXH, k_KSH) * q_KXH.shape[2] ** -0.5
    K, X, S = scores_KXS.shape
    keys_1S = block * S + jnp.arange(S)[None]
    seen_QS = (starts_Q[:, None] <= keys_1S) & (keys_1S <= places_Q[:, None])
    return jnp.where(seen_QS[None, None], scores_KXS.reshape(K, X // S, S, S), HIDDEN).reshape(K, X, S)


def _at(array_BKSH, row, block, places_Q):
    size = len(places_Q)
    return jax.lax.dynamic_slice(array_BKSH, (row, 0, block * size, 0), (1, array_BKSH.shape[1], size, array_BKSH.shape[3]))[0]


def _add_at(array_BKHS, row, block, part_KHS):
    start = (row, 0, 0, block * part_KHS.shape[2])
    old_1KHS = jax.lax.dynamic_slice(array_BKHS, start, (1, *part_KHS.shape))
    return jax.lax.dynamic_update_slice(array_BKHS, old_1KHS + part_KHS[None], start)


_product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
