"""A decoder as today's open models are, and the letters its arrays are named by.

    B batch   T query length   S key length   L layers   D model   F mlp
    N heads   K kv heads       G = N/K        H head dim V vocabulary   R rank of a LoRA adapter

Arrays end in their letters (`x_BTD`, `wq_LDNH`); einsums use the same letters; the letters of a parameter's name select its
sharding (training/sharding.py). NNX declares the parameters; `forward` is a function of the plain dict they make.
In: token ids and segment ids, [B, T]. Out: final hidden states [B, T, D]; `unembed` turns some of them into logits.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from msmjax.artifact import BadInput
from msmjax.model import attention
from msmjax.ranges import Count, Natural, NotNegative, Positive

AUTO = "auto"  # of remat and attention: what fits the machine (fit.py)
REMAT = ("none", "attention", "full")  # what the backward pass computes again: nothing, all but attention outputs, everything
DTYPES = ("float32", "bfloat16")
# The matrices of a block: name -> letters it sums over, letters of its output. A LoRA adapter has a pair for each.
PROJECTIONS = {
    "wq": ("D", "NH"), "wk": ("D", "KH"), "wv": ("D", "KH"), "wo": ("NH", "D"),
    "w_gate": ("D", "F"), "w_up": ("D", "F"), "w_down": ("F", "D"),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Shape and options of the transformer; sizes by their letters' names. Raises BadInput for a shape that cannot be."""

    vocab: Count
    layers: Count
    width: Count  # D
    mlp: Count  # F
    heads: Count  # N
    kv_heads: Count  # K
    head_dim: Count  # H
    rope_theta: Positive
    rope_scaling: tuple[Positive, ...]  # Llama 3.1's (factor, low and high frequency factor, original length), or ()
    norm_epsilon: Positive
    qkv_bias: bool
    qk_norm: bool
    tied_embeddings: bool
    embedding_init: Positive  # standard deviation
    matrix_init: Positive  # standard deviation times sqrt(fan-in): 1 keeps the scale of activations
    lora_rank: Natural  # 0: all parameters are trained; else an adapter on all PROJECTIONS, and the rest is frozen
    lora_alpha: NotNegative  # the adapter's product is scaled by lora_alpha / lora_rank
    compute_dtype: str
    scan_layers: bool
    remat: str
    attention: str  # model/attention.py

    def __post_init__(self):
        if self.heads % self.kv_heads:
            raise BadInput(f"model.heads={self.heads}: must be a multiple of model.kv_heads={self.kv_heads}")
        if self.head_dim % 2:
            raise BadInput(f"model.head_dim={self.head_dim}: must be even for rotary positions")
        if len(self.rope_scaling) not in (0, 4):
            raise BadInput(f"model.rope_scaling={self.rope_scaling}: neither () nor four numbers")
        if self.rope_scaling and not self.rope_scaling[1] < self.rope_scaling[2]:
            raise BadInput(f"model.rope_scaling={self.rope_scaling}: its low frequency factor must be below the high one")
        if self.lora_rank and not self.lora_alpha > 0:
            raise BadInput(f"model.lora_alpha={self.lora_alpha}: must be above 0 where model.lora_rank is")
        for name, known in (("remat", (AUTO, *REMAT)), ("compute_dtype", DTYPES), ("attention", (AUTO, *attention.BACK_ENDS))):
            if getattr(self, name) not in known:
                raise BadInput(f"model.{name}={getattr(self, name)!r}: unknown; one of {', '.join(known)}")

    @property
    def sizes(self) -> dict[str, int]:
        """Letter -> size, for the letters that parameters have."""
        return {
            "L": self.layers, "D": self.width, "F": self.mlp, "N": self.heads, "K": self.kv_heads, "H": self.head_dim,
            "V": self.vocab, "R": self.lora_rank,
        }  # fmt: skip


class Parameters(nnx.Module):
    """Declares parameters by their letters: one string gives shape, initialisation and (by name) sharding."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        self.config, self.rngs = config, rngs

    def ones(self, letters: str) -> nnx.Param:
        return nnx.Param(jnp.ones([self.config.sizes[x] for x in letters]), letters=letters)

    def zeros(self, letters: str) -> nnx.Param:
        return nnx.Param(jnp.zeros([self.config.sizes[x] for x in letters]), letters=letters)

    def normal(self, letters: str, fan_in: str = "") -> nnx.Param:
        """Gaussian: with the letters that are summed over, matrix_init / sqrt(their size); without, embedding_init."""
        shape = [self.config.sizes[x] for x in letters]
        scale = self.config.embedding_init
        if fan_in:
            scale = self.config.matrix_init / functools.reduce(lambda n, x: n * self.config.sizes[x], fan_in, 1) ** 0.5
        return nnx.Param(scale * jax.random.normal(self.rngs.params(), shape), letters=letters)

    def uniform(self, letters: str, fan_in: str) -> nnx.Param:
        """Uniform within 1 / sqrt(fan-in): how PEFT initialises `lora_A`."""
        shape = [self.config.sizes[x] for x in letters]
        bound = functools.reduce(lambda n, x: n * self.config.sizes[x], fan_in, 1) ** -0.5
        return nnx.Param(jax.random.uniform(self.rngs.params(), shape, minval=-bound, maxval=bound), letters=letters)


class Blocks(Parameters):
    """All transformer blocks, stacked along L."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        super().__init__(config, rngs)
        self.attention_norm_LD = self.ones("LD")
        self.wq_LDNH = self.normal("LDNH", fan_in="D")
        self.wk_LDKH = self.normal("LDKH", fan_in="D")
        self.wv_LDKH = self.normal("LDKH", fan_in="D")
        self.wo_LNHD = self.normal("LNHD", fan_in="NH")
        if config.qkv_bias:
            self.bq_LNH, self.bk_LKH, self.bv_LKH = self.zeros("LNH"), self.zeros("LKH"), self.zeros("LKH")
        if config.qk_norm:
            self.q_norm_LH, self.k_norm_LH = self.ones("LH"), self.ones("LH")
        self.mlp_norm_LD = self.ones("LD")
        self.w_gate_LDF = self.normal("LDF", fan_in="D")
        self.w_up_LDF = self.normal("LDF", fan_in="D")
        self.w_down_LFD = self.normal("LFD", fan_in="F")


class Adapter(Parameters):
    """The LoRA pairs (arXiv 2106.09685) of all blocks, stacked along L: `wq_a_LDR` and `wq_b_LRNH` beside `wq_LDNH`."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        super().__init__(config, rngs)
        for name, (summed, out) in PROJECTIONS.items():
            setattr(self, f"{name}_a_L{summed}R", self.uniform(f"L{summed}R", fan_in=summed))
            setattr(self, f"{name}_b_LR{out}", self.zeros(f"LR{out}"))


class Transformer(Parameters):
    """The whole model's declaration."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        super().__init__(config, rngs)
        self.embedding_VD = self.normal("VD")
        self.blocks = Blocks(config, rngs)
        self.final_norm_D = self.ones("D")
        if not config.tied_embeddings:
            self.unembedding_DV = self.normal("DV", fan_in="D")


def init_params(config: ModelConfig, key: jax.Array) -> dict:
    """A nested dict of float32 arrays; trace it with `jax.eval_shape` for the shapes alone."""
    return nnx.to_pure_dict(nnx.state(Transformer(config, nnx.Rngs(params=key)), nnx.Param))


def init_adapter(config: ModelConfig, key: jax.Array) -> dict:
    """`{"blocks": ...}` of float32 LoRA pairs; the product of each is zero."""
    return {"blocks": nnx.to_pure_dict(nnx.state(Adapter(config, nnx.Rngs(params=key)), nnx.Param))}


def with_adapter(params: dict, adapter: dict) -> dict:
    """What `forward` takes where lora_rank is not 0: the parameters with the adapter's pairs beside their matrices."""
    blocks, pairs = params["blocks"], adapter["blocks"]
    if isinstance(blocks, list):
        return {**params, "blocks": [{**layer, **own} for layer, own in zip(blocks, unstack(pairs, len(blocks)), strict=True)]}
    return {**params, "blocks": {**blocks, **pairs}}


def count_params(config: ModelConfig) -> int:
    """Number of parameters without the adapter, by shape alone."""
    return _count(lambda: init_params(config, jax.random.key(0)))


def count_adapter(config: ModelConfig) -> int:
    """Number of the adapter's parameters, by shape alone."""
    return _count(lambda: init_adapter(config, jax.random.key(0)))


def _count(init: Callable[[], dict]) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(init)))


def forward(
    config: ModelConfig,
    params: dict,
    tokens_BT: jax.Array,
    segment_ids_BT: jax.Array,
    place=attention.ONE_DEVICE,
    segments: int = 0,
) -> jax.Array:
    """Final hidden states, [B, T, D] in the compute dtype. `place` is a training.sharding.Placement, where there is a mesh.

    No row has more than `segments`, if that is not 0 (model/attention.py).
    """
    starts_BT = attention.segment_starts(segment_ids_BT)

    def attend(q_BTNH, k_BTKH, v_BTKH, past):
        return attention.attention(config.attention, q_BTNH, k_BTKH, v_BTKH, starts_BT, place, segments), None

    # Rotary positions are relative, and attention stays within a segment: they need not restart with it.
    return _through_blocks(config, params, tokens_BT, rope_angles(config, tokens_BT.shape[1]), attend, place)[0]


def prefill(config: ModelConfig, params: dict, tokens_BT: jax.Array, columns: int, place):
    """The cache of rows of one segment, with room for `columns` more tokens: of each layer keys [B, K, H, S] and values
    [B, K, S, H] in the compute dtype, S = T + `columns`. A list of layers, or where they are scanned stacks [L, ...]."""
    starts_BT = jnp.zeros_like(tokens_BT)

    def attend(q_BTNH, k_BTKH, v_BTKH, past):
        # Not every back end takes the lengths that prompts have; whole rows are what cuDNN is fastest at.
        back_end = "cudnn" if config.attention == "cudnn" else "xla"
        out_BTNH = attention.attention(back_end, q_BTNH, k_BTKH, v_BTKH, starts_BT, place, segments=1)
        k_BKHT, v_BKTH = k_BTKH.transpose(0, 2, 3, 1), v_BTKH.swapaxes(1, 2)
        none, room = (0, 0), (0, columns)
        k_BKHS, v_BKSH = jnp.pad(k_BKHT, [none, none, none, room]), jnp.pad(v_BKTH, [none, none, room, none])
        return out_BTNH, (place(k_BKHS, "BKHS"), place(v_BKSH, "BKSH"))

    return _through_blocks(config, params, tokens_BT, rope_angles(config, tokens_BT.shape[1]), attend, place)[1]


def forward_cached(
    config: ModelConfig, params: dict, tokens_BT: jax.Array, angles: tuple, mask_BTS: jax.Array, cache, column, place
) -> tuple:
    """`forward` of tokens whose keys and values go to columns `column` to `column + T - 1` of `cache`, and the cache with them.

    `cache` is what `prefill` makes; `mask_BTS` says which of its columns a token sees.
    """

    def attend(q_BTNH, k_BTKH, v_BTKH, past):
        # A layer's cache is written and then read: in place, where the caller's loop carries it.
        k_BKHS = jax.lax.dynamic_update_slice_in_dim(past[0], k_BTKH.transpose(0, 2, 3, 1), column, axis=3)
        v_BKSH = jax.lax.dynamic_update_slice_in_dim(past[1], v_BTKH.swapaxes(1, 2), column, axis=2)
        k_BKHS, v_BKSH = place(k_BKHS, "BKHS"), place(v_BKSH, "BKSH")
        return attention.masked(q_BTNH, k_BKHS, v_BKSH, mask_BTS), (k_BKHS, v_BKSH)

    return _through_blocks(config, params, tokens_BT, angles, attend, place, cache)


def _through_blocks(config: ModelConfig, params: dict, tokens_BT, angles, attend, place, cache=None) -> tuple:
    """Final hidden states [B, T, D], and of each layer what `attend` keeps: a list, or where layers are scanned stacks [L, ...].

    `attend(q_BTNH, k_BTKH, v_BTKH, past) -> [B, T, N, H], kept`; `past` is the layer's part of the cache.
    """
    dtype = jnp.dtype(config.compute_dtype)
    x_BTD = place(params["embedding_VD"].astype(dtype)[tokens_BT], "BTD")

    def block(x_BTD, layer_and_past):
        layer, past = layer_and_past
        layer = {name.replace("_L", "_", 1): array.astype(dtype) for name, array in layer.items()}
        with jax.named_scope("attention"):
            normed_BTD = rms_norm(x_BTD, layer["attention_norm_D"], config)
            q_BTNH, k_BTKH, v_BTKH = queries_keys_values(config, layer, normed_BTD, angles)
            out_BTNH, kept = attend(place(q_BTNH, "BTNH"), k_BTKH, v_BTKH, past)
            x_BTD = x_BTD + project(config, layer, ("wo",), out_BTNH)[0]
        with jax.named_scope("mlp"):
            x_BTD = x_BTD + mlp(config, layer, rms_norm(x_BTD, layer["mlp_norm_D"], config), place)
        return place(x_BTD, "BTD"), kept

    if config.remat == "attention":
        block = jax.checkpoint(block, policy=attention.keep_outputs)
    elif config.remat == "full":
        block = jax.checkpoint(block)
    if config.scan_layers:
        x_BTD, kept = jax.lax.scan(block, x_BTD, (params["blocks"], cache))
    else:
        kept = []
        for index, layer in enumerate(layers_of(params)):
            x_BTD, of_layer = block(x_BTD, (layer, cache and cache[index]))
            kept.append(of_layer)
    return rms_norm(x_BTD, params["final_norm_D"].astype(dtype), config), kept


def layers_of(params: dict) -> list[dict]:
    """The arrays of each block. Where they are stacks, this takes them apart, so a loop should be given what it returns."""
    blocks = params["blocks"]
    return blocks if isinstance(blocks, list) else unstack(blocks, len(blocks["attention_norm_LD"]))


def unstack(blocks: dict, layers: int) -> list[dict]:
    """The arrays of all blocks, [L, ...] each, as a dict for each block, whose names have no L.

    `split`, since its gradient is one concatenation; that of slices would be a sum of L whole stacks.
    """
    parts = {name.replace("_L", "_", 1): jax.lax.split(array, [1] * layers) for name, array in blocks.items()}
    return [{name: array[layer][0] for name, array in parts.items()} for layer in range(layers)]


def unembed(config: ModelConfig, params: dict, x_BTD: jax.Array) -> jax.Array:
    """Logits in float32, [..., V]."""
    weights, letters = unembedding(config, params)
    return jnp.einsum(f"...D,{letters}->...V", x_BTD, weights.astype(x_BTD.dtype), preferred_element_type=jnp.float32)


def unembedding(config: ModelConfig, params: dict) -> tuple[jax.Array, str]:
    """The matrix that makes logits, and its letters."""
    letters = "VD" if config.tied_embeddings else "DV"
    return params["embedding_VD" if config.tied_embeddings else "unembedding_DV"], letters


def queries_keys_values(config: ModelConfig, layer: dict, x_BTD, angles) -> tuple[jax.Array, jax.Array, jax.Array]:
    """[B, T, N, H] and two [B, T, K, H]: projected, queries and keys turned to their positions."""
    q_BTNH, k_BTKH, v_BTKH = project(config, layer, ("wq", "wk", "wv"), x_BTD)
    if config.qkv_bias:
        q_BTNH += layer["bq_NH"][None, None]
        k_BTKH += layer["bk_KH"][None, None]
        v_BTKH += layer["bv_KH"][None, None]
    if config.qk_norm:
        q_BTNH, k_BTKH = rms_norm(q_BTNH, layer["q_norm_H"], config), rms_norm(k_BTKH, layer["k_norm_H"], config)
    return rotate(q_BTNH, *angles), rotate(k_BTKH, *angles), v_BTKH


def project(config: ModelConfig, layer: dict, names: tuple[str, ...], x_BT: jax.Array) -> list[jax.Array]:
    """x W for each W, and with LoRA + (lora_alpha / lora_rank) (x A) B: the product of A and B never exists."""
    summed = PROJECTIONS[names[0]][0]
    # As one axis, X = B x T: XLA's CPU computes the gradient of a matrix twice as fast as when it is summed over two.
    B, T = x_BT.shape[:2]
    x_X = x_BT.reshape(B * T, *x_BT.shape[2:])
    if config.lora_rank:
        # All A's of one input as one product: they are narrow, and reading x is what they take on a GPU.
        a = jnp.concatenate([layer[f"{name}_a_{summed}R"] for name in names], axis=-1)
        low_XR = jnp.einsum(f"X{summed},{summed}R->XR", x_X, a) * (config.lora_alpha / config.lora_rank)
    out = []
    for index, name in enumerate(names):
        letters = PROJECTIONS[name][1]
        y_X = jnp.einsum(f"X{summed},{summed}{letters}->X{letters}", x_X, layer[f"{name}_{summed}{letters}"])
        if config.lora_rank:
            own_XR = jax.lax.slice_in_dim(low_XR, index * config.lora_rank, (index + 1) * config.lora_rank, axis=1)
            y_X += jnp.einsum(f"XR,R{letters}->X{letters}", own_XR, layer[f"{name}_b_R{letters}"])
        out.append(y_X.reshape(B, T, *y_X.shape[1:]))
    return out


def mlp(config: ModelConfig, layer: dict, x_BTD, place) -> jax.Array:
    """Two projections, SwiGLU, and one back, [B, T, D]."""
    gate_BTF, up_BTF = project(config, layer, ("w_gate", "w_up"), x_BTD)
    return project(config, layer, ("w_down",), place(swiglu(gate_BTF, up_BTF), "BTF"))[0]


# Computed again whatever remat says, as norms are: a backward pass keeps what goes in, and not what is between, which would be two
# fifths of all that it keeps.
@jax.checkpoint
def swiglu(gate: jax.Array, up: jax.Array) -> jax.Array:
    return jax.nn.silu(gate) * up


@functools.partial(jax.checkpoint, static_argnums=2)
def rms_norm(x: jax.Array, scale: jax.Array, config: ModelConfig) -> jax.Array:
    """Root-mean-square normalisation over the last axis, in float32."""
    x32 = x.astype(jnp.float32)
    x32 = x32 * jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + config.norm_epsilon)
    # The product keeps x's rank: ranks are promoted nowhere else in this file.
    return x32.astype(x.dtype) * jax.lax.broadcast_in_dim(scale, x.shape, (x.ndim - 1,))


def rope_angles(config: ModelConfig, length: int) -> tuple[jax.Array, jax.Array]:
    """cos and sin of the rotary angles (arXiv 2104.09864) of positions 0 to T - 1, float32 [T, H/2]."""
    return angles_at(config, jnp.arange(length))


def angles_at(config: ModelConfig, positions_T: jax.Array) -> tuple[jax.Array, jax.Array]:
    """`rope_angles` of any positions."""
    frequencies = config.rope_theta ** (-jnp.arange(0, config.head_dim, 2, dtype=jnp.float32) / config.head_dim)
    if config.rope_scaling:
        # Llama 3.1: wavelengths above original / low are stretched by the factor, those below original / high are kept, and
        # between them it is interpolated (transformers, modeling_rope_utils.py, rope_type "llama3").
        factor, low, high, original = config.rope_scaling
        turns = original * frequencies / (2 * jnp.pi)  # in the original length
        kept = jnp.clip((turns - low) / (high - low), 0, 1)
        frequencies = frequencies * (kept + (1 - kept) / factor)
    angles = jnp.outer(positions_T.astype(jnp.float32), frequencies)
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Rotates the halves of the last axis of [B, T, heads, H] against each other (the Hugging Face layout).

    The angles are [T, H/2], or [B, T, H/2] where each row has positions of its own.
    """
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    cos, sin = (angle.reshape(-1, *angle.shape[-2:])[:, :, None] for angle in (cos, sin))
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)
