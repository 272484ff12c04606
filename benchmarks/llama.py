"""A Llama of published shape with random weights, the same here and in transformers: made on the device, by one formula.

Every weight is a hash of its name and place, so that both sides compute the same function and no file of 16 GB is written. Rows
are random too, never zeros: a GPU is faster on zeros.
"""

import functools
import zlib

import numpy as np

# Fields of a LlamaConfig. The two smallest have the proportions of an 8B model; the others are published shapes.
MODELS = {
    "tiny": (512, 2, 64, 224, 8, 2, 8),
    "small": (8192, 4, 256, 896, 8, 2, 32),
    "llama32_1b": (128_256, 16, 2048, 8192, 32, 8, 64),
    "llama31_8b": (128_256, 32, 4096, 14_336, 32, 8, 128),
}
SPREAD = 0.02 * 12**0.5  # of a uniform distribution whose standard deviation is transformers' initializer_range


def shape_of(name: str) -> dict:
    """The shape as fields of `ModelConfig`."""
    names = ("vocab", "layers", "width", "mlp", "heads", "kv_heads", "head_dim")
    return dict(zip(names, MODELS[name], strict=True)) | {
        "rope_theta": 5e5, "rope_scaling": (), "norm_epsilon": 1e-5, "qkv_bias": False, "qk_norm": False, "tied_embeddings": False,
        "embedding_init": 0.02, "matrix_init": 1.0,
    }  # fmt: skip


def rows_of(seed: int, rows: int, length: int, vocab: int, supervised: float = 2 / 3) -> dict[str, np.ndarray]:
    """Random packed rows: documents of an eighth to a half of a row, one after the other, with a share of supervised tokens."""
    rng = np.random.default_rng(seed)
    segment_ids = np.zeros((rows, length), np.int32)
    for row in segment_ids:
        start, segment = 0, 1
        while start < length:
            end = min(start + int(rng.integers(length // 8, length // 2)), length)
            row[start:end], start, segment = segment, end, segment + 1
    tokens = rng.integers(4, vocab, (rows, length)).astype(np.int32)
    return {"tokens": tokens, "segment_ids": segment_ids, "loss_mask": rng.random((rows, length)) < supervised}


def _salt(tensor: str) -> int:
    return zlib.crc32(tensor.encode())


def fill(abstract: dict) -> dict:
    """Our parameters: an array for every leaf of a tree of shapes and shardings, its `blocks` stacked or a list of layers."""
    import jax
    import jax.numpy as jnp

    from msmjax.model.lora import MODULES
    from msmjax.model.transformer import PROJECTIONS

    @functools.partial(jax.jit, static_argnums=(1, 2, 3))
    def make(salt, rows: int, columns: int, dtype):
        """A tensor as transformers has it, [out, in]."""
        x = jnp.arange(rows * columns, dtype=jnp.uint32).reshape(rows, columns) + salt
        x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
        x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
        unit = (x ^ (x >> 16)) >> 8
        return ((unit.astype(jnp.float32) * 2.0**-24 - 0.5) * SPREAD).astype(jnp.bfloat16).astype(dtype)

    def tensor(name: str, shape: tuple[int, ...], layer: int, dtype) -> jax.Array:
        if "norm" in name:
            return jnp.ones(shape, dtype)
        if name in ("embedding", "unembedding"):
            rows, columns = shape if name == "embedding" else shape[::-1]
            out = make(np.uint32(_salt("model.embed_tokens" if name == "embedding" else "lm_head")), rows, columns, dtype)
            return out if name == "embedding" else out.T
        summed = len(PROJECTIONS[name][0])
        rows, columns = int(np.prod(shape[summed:])), int(np.prod(shape[:summed]))
        return make(np.uint32(_salt(f"model.layers.{layer}.{MODULES[name]}")), rows, columns, dtype).T.reshape(shape)

    def leaf(path, aval):
        keys = [getattr(key, "key", getattr(key, "idx", None)) for key in path]
        name, _, letters = keys[-1].rpartition("_")
        if letters.startswith("L"):
            layers = [tensor(name, aval.shape[1:], layer, aval.dtype) for layer in range(aval.shape[0])]
            return jax.device_put(jnp.stack(layers), aval.sharding)
        layer = next((key for key in keys if isinstance(key, int)), 0)
        return jax.device_put(tensor(name, aval.shape, layer, aval.dtype), aval.sharding)

    return jax.tree_util.tree_map_with_path(leaf, abstract)


def transformers_model(name: str, dtype: str, device: str):
    """Theirs: the model class of transformers with `sdpa` attention, on its device."""
    import torch
    import transformers

    vocab, layers, width, mlp, heads, kv_heads, head_dim = MODELS[name]
    config = transformers.LlamaConfig(
        vocab_size=vocab, num_hidden_layers=layers, hidden_size=width, intermediate_size=mlp, num_attention_heads=heads,
        num_key_value_heads=kv_heads, head_dim=head_dim, rms_norm_eps=1e-5, rope_theta=5e5, tie_word_embeddings=False,
        max_position_embeddings=8192,
    )  # fmt: skip
    with torch.device(device):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype), attn_implementation="sdpa")

    def mix(x, shift, factor):
        return ((x ^ (x >> shift)) * factor) & 0xFFFFFFFF

    with torch.no_grad():
        for tensor, parameter in model.named_parameters():
            if parameter.ndim == 2:
                at = torch.arange(parameter.numel(), device=device) + _salt(tensor.removesuffix(".weight"))
                x = mix(mix(at & 0xFFFFFFFF, 16, 0x85EBCA6B), 13, 0xC2B2AE35)
                unit = ((x ^ (x >> 16)) >> 8).to(torch.float32)
                parameter.copy_(((unit * 2.0**-24 - 0.5) * SPREAD).to(torch.bfloat16).reshape(parameter.shape))
                del at, x, unit
    return model
