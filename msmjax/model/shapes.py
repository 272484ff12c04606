"""Shapes of published models: what their configuration files say, as fields of a `ModelConfig`.

In: nothing. Out: `SHAPES`, name -> fields; what a run chooses (compute dtype, LoRA, remat) is not among them. An import checks
them against the `config.json` of the weights.
"""

_COMMON = {
    "head_dim": 128, "kv_heads": 8, "rope_theta": 1e6, "rope_scaling": (), "norm_epsilon": 1e-6, "qkv_bias": False,
    "qk_norm": False, "tied_embeddings": False,
}  # fmt: skip
_LLAMA31 = {"rope_theta": 5e5, "rope_scaling": (8.0, 1.0, 4.0, 8192.0), "norm_epsilon": 1e-5}
SHAPES = {
    "llama31_8b": {**_COMMON, **_LLAMA31, "vocab": 128_256, "layers": 32, "width": 4096, "mlp": 14_336, "heads": 32},
    "qwen25_14b": {**_COMMON, "vocab": 152_064, "layers": 48, "width": 5120, "mlp": 13_824, "heads": 40, "qkv_bias": True},
    "qwen25_32b": {**_COMMON, "vocab": 152_064, "layers": 64, "width": 5120, "mlp": 27_648, "heads": 40, "qkv_bias": True},
    "qwen3_14b": {**_COMMON, "vocab": 151_936, "layers": 40, "width": 5120, "mlp": 17_408, "heads": 40, "qk_norm": True},
    "qwen3_32b": {**_COMMON, "vocab": 151_936, "layers": 64, "width": 5120, "mlp": 25_600, "heads": 64, "qk_norm": True},
}
