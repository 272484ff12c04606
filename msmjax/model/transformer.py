"""A decoder as today's open models are, and the letters its arrays are named by.

    B batch   T query length   S key length   L layers   D model   F mlp
    N heads   K kv heads       G = N/K        H head dim V vocabulary

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

REMAT = ("none", "full")
DTYPES = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Shape and options of the transformer; sizes by their letters' names. Raises BadInput for a shape that cannot be."""

    vocab: int
    layers: int
    width: int  # D
    mlp: int  # F
    heads: int  # N
    kv_heads: int  # K
    head_dim: int  # H
    rope_theta: float
    norm_epsilon: float
    qkv_bias: bool
    qk_norm: bool
    tied_embeddings: bool
    embedding_init: float  # standard deviation
    matrix_init: float  # standard deviation times sqrt(fan-in): 1 keeps the scale of activations
    compute_dtype: str
    scan_layers: bool
    remat: str

    def __post_init__(self):
        for name in ("vocab", "layers", "width", "mlp", "heads", "kv_heads", "head_dim"):
            if getattr(self, name) < 1:
                raise BadInput(f"model.{name}={getattr(self, name)}: must be at least 1")
        if self.heads % self.kv_heads:
            raise BadInput(f"model.heads={self.heads}: must be a multiple of model.kv_heads={self.kv_heads}")
        if self.head_dim % 2:
            raise BadInput(f"model.head_dim={self.head_dim}: must be even for rotary positions")
        for name, known in (("remat", REMAT), ("compute_dtype", DTYPES)):
            if getattr(self, name) not in known:
                raise BadInput(f"model.{name}={getattr(self, name)!r}: unknown; one of {', '.join(known)}")

    @property
    def sizes(self) -> dict[str, int]:
        """Letter -> size, for the letters that parameters have."""
        return {
            "L": self.layers, "D": self.width, "F": self.mlp, "N": self.heads, "K": self.kv_heads, "H": self.head_dim,
            "V": self.vocab,
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


def count_params(config: ModelConfig) -> int:
    """Number of parameters, by shape alone."""
    abstract = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
    return sum(leaf.size for leaf in jax.tree.leaves(abstract))


def forward(
    config: ModelConfig,
    params: dict,
    tokens_BT: jax.Array,
    segment_ids_BT: jax.Array,
    constrain: Callable[[jax.Array, str], jax.Array] = lambda x, letters: x,
) -> jax.Array:
    """Final hidden states, [B, T, D] in the compute dtype. `constrain(array, letters)` places activations on a mesh."""
    dtype = jnp.dtype(config.compute_dtype)
    x_BTD = constrain(params["embedding_VD"].astype(dtype)[tokens_BT], "BTD")
    # Rotary positions are relative, and attention stays within a segment: they need not restart with it.
    angles = rope_angles(config, tokens_BT.shape[1])
    mask_BTS = attention_mask(segment_ids_BT)

    def block(x_BTD, layer):
        layer = {name.replace("_L", "_", 1): array.astype(dtype) for name, array in layer.items()}
        x_BTD = x_BTD + attention(config, layer, rms_norm(x_BTD, layer["attention_norm_D"], config), angles, mask_BTS, constrain)
        x_BTD = x_BTD + mlp(layer, rms_norm(x_BTD, layer["mlp_norm_D"], config), constrain)
        return constrain(x_BTD, "BTD"), None

    if config.remat == "full":
        block = jax.checkpoint(block)
    if config.scan_layers:
        x_BTD, _ = jax.lax.scan(block, x_BTD, params["blocks"])
    else:
        for index in range(config.layers):
            x_BTD, _ = block(x_BTD, jax.tree.map(lambda array, i=index: array[i], params["blocks"]))
    return rms_norm(x_BTD, params["final_norm_D"].astype(dtype), config)


def unembed(config: ModelConfig, params: dict, x_BTD: jax.Array) -> jax.Array:
    """Logits in float32, [..., V]."""
    if config.tied_embeddings:
        weights, subscripts = params["embedding_VD"], "...D,VD->...V"
    else:
        weights, subscripts = params["unembedding_DV"], "...D,DV->...V"
    return jnp.einsum(subscripts, x_BTD, weights.astype(x_BTD.dtype), preferred_element_type=jnp.float32)


def attention(config: ModelConfig, layer: dict, x_BTD, angles, mask_BTS, constrain) -> jax.Array:
    """Grouped-query attention; a query sees the keys that `mask_BTS` allows."""
    with jax.named_scope("attention"):
        q_BTNH = jnp.einsum("BTD,DNH->BTNH", x_BTD, layer["wq_DNH"])
        k_BSKH = jnp.einsum("BSD,DKH->BSKH", x_BTD, layer["wk_DKH"])
        v_BSKH = jnp.einsum("BSD,DKH->BSKH", x_BTD, layer["wv_DKH"])
        if config.qkv_bias:
            q_BTNH += layer["bq_NH"][None, None]
            k_BSKH += layer["bk_KH"][None, None]
            v_BSKH += layer["bv_KH"][None, None]
        if config.qk_norm:
            q_BTNH, k_BSKH = rms_norm(q_BTNH, layer["q_norm_H"], config), rms_norm(k_BSKH, layer["k_norm_H"], config)
        q_BTNH, k_BSKH = rotate(q_BTNH, *angles), rotate(k_BSKH, *angles)
        B, T, N, H = q_BTNH.shape
        q_BTKGH = constrain(q_BTNH, "BTNH").reshape(B, T, config.kv_heads, N // config.kv_heads, H)
        scores = jnp.einsum("BTKGH,BSKH->BKGTS", q_BTKGH, k_BSKH, preferred_element_type=jnp.float32) * H**-0.5
        scores = jnp.where(mask_BTS[:, None, None], scores, jnp.finfo(jnp.float32).min)
        weights_BKGTS = jax.nn.softmax(scores, axis=-1).astype(x_BTD.dtype)
        out_BTKGH = jnp.einsum("BKGTS,BSKH->BTKGH", weights_BKGTS, v_BSKH)
        return jnp.einsum("BTNH,NHD->BTD", out_BTKGH.reshape(B, T, N, H), layer["wo_NHD"])


def mlp(layer: dict, x_BTD, constrain) -> jax.Array:
    """SwiGLU."""
    with jax.named_scope("mlp"):
        gate_BTF = jnp.einsum("BTD,DF->BTF", x_BTD, layer["w_gate_DF"])
        up_BTF = jnp.einsum("BTD,DF->BTF", x_BTD, layer["w_up_DF"])
        return jnp.einsum("BTF,FD->BTD", constrain(jax.nn.silu(gate_BTF) * up_BTF, "BTF"), layer["w_down_FD"])


def rms_norm(x: jax.Array, scale: jax.Array, config: ModelConfig) -> jax.Array:
    """Root-mean-square normalisation over the last axis, in float32."""
    x32 = x.astype(jnp.float32)
    x32 = x32 * jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + config.norm_epsilon)
    # The product keeps x's rank: ranks are promoted nowhere else in this file.
    return x32.astype(x.dtype) * jax.lax.broadcast_in_dim(scale, x.shape, (x.ndim - 1,))


def attention_mask(segment_ids_BT: jax.Array) -> jax.Array:
    """bool [B, T, S]: a query sees the keys at or before it in its own segment (padding is a segment like any other)."""
    T = segment_ids_BT.shape[1]
    same_BTS = segment_ids_BT[:, :, None] == segment_ids_BT[:, None, :]
    return same_BTS & jnp.tril(jnp.ones((T, T), bool))[None]


def rope_angles(config: ModelConfig, length: int) -> tuple[jax.Array, jax.Array]:
    """cos and sin of the rotary angles (arXiv 2104.09864) of positions 0 to T - 1, float32 [T, H/2]."""
    frequencies = config.rope_theta ** (-jnp.arange(0, config.head_dim, 2, dtype=jnp.float32) / config.head_dim)
    angles = jnp.outer(jnp.arange(length, dtype=jnp.float32), frequencies)
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Rotates the halves of the last axis against each other (the Hugging Face layout), [B, T, heads, H]."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    cos, sin = cos[None, :, None], sin[None, :, None]
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)
