"""LoRA adapters as files and as changes of matrices: PEFT's format both ways, merging, norms and cosines.

In: the adapter dict of `init_adapter`, or a directory that PEFT wrote. Out: a directory that PEFT (vLLM, transformers) reads, the
adapter dict, parameters with the adapter merged, numbers about what it does. The product of a pair is its effect on the matrix:
A and B alone can be turned against each other without changing anything, so nothing is measured on them.
"""

import functools
import json
import math
import os
import re
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from msmjax import artifact
from msmjax.artifact import BadInput
from msmjax.data import template
from msmjax.model.transformer import PROJECTIONS, ModelConfig, count_adapter

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# Where the Hugging Face models of these shapes (Llama, Qwen2, Qwen3) have the matrices.
MODULES = {
    "wq": "self_attn.q_proj", "wk": "self_attn.k_proj", "wv": "self_attn.v_proj", "wo": "self_attn.o_proj",
    "w_gate": "mlp.gate_proj", "w_up": "mlp.up_proj", "w_down": "mlp.down_proj",
}  # fmt: skip
TARGETS = tuple(module.partition(".")[2] for module in MODULES.values())
SIZES = {"D": "width", "F": "mlp", "NH": "heads x head_dim", "KH": "kv_heads x head_dim", "R": "rank"}
DTYPES = ("F32", "BF16", "F16")  # each is exact in float32

READ = {"peft_type", "r", "lora_alpha", "target_modules", "init_lora_weights"}
# Fields of PEFT's config that leave the function as it is, whatever they say: where the adapter is from, and how it was trained.
IGNORED = {
    "base_model_name_or_path", "revision", "peft_version", "task_type", "auto_mapping", "inference_mode", "lora_dropout",
    "eva_config", "megatron_core", "qalora_group_size",
}  # fmt: skip
# The initialisations that leave the base as it is; others (pissa, olora, corda, loftq, ...) subtract from it what they start from.
INITIALISATIONS = (True, False, "gaussian", "eva", "orthogonal")
OFF = (None, False, {}, [], "none")


def describe(model: ModelConfig) -> str:
    """One line about the adapter: rank, alpha, the factor of its product, where it is, how many parameters it has."""
    if not model.lora_rank:
        return "no LoRA: all parameters are trained"
    return (
        f"LoRA r={model.lora_rank}, alpha={model.lora_alpha:g}, effective scale {_scale(model):g}, on {', '.join(TARGETS)} of "
        f"{model.layers} layers ({len(TARGETS) * model.layers} modules): {count_adapter(model):,} parameters"
    )


def write_peft(directory: Path, model: ModelConfig, adapter: dict, base_name: str, templates: dict[str, str] | None = None) -> None:
    """Writes an adapter as PEFT does, in float32; `base_name` is the model's name or path that PEFT will look for.

    With the chat templates that it was trained with, by name (data/template.py), as published adapters have it.
    Built aside and renamed: `directory` is whole or not there. Raises BadInput where something is there already.
    """
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise BadInput(f"{directory}: exists already; remove it or write the adapter elsewhere")
    safetensors = _safetensors()
    tensors = {}
    for leaf, module, (rows, columns) in _leaves():
        array = np.asarray(adapter["blocks"][leaf], np.float32).reshape(model.layers, _size(model, rows), _size(model, columns))
        for layer in range(model.layers):
            # torch keeps a matrix as [out, in]; safetensors writes the memory as it lies, whatever the strides.
            tensors[_key(layer, module)] = np.ascontiguousarray(array[layer].T)
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base_name, "inference_mode": True,
        "r": model.lora_rank, "lora_alpha": int(model.lora_alpha) if model.lora_alpha % 1 == 0 else model.lora_alpha,
        "target_modules": list(TARGETS), "lora_dropout": 0.0, "bias": "none", "use_rslora": False, "use_dora": False,
        "fan_in_fan_out": False, "init_lora_weights": True, "modules_to_save": None, "layers_to_transform": None,
        "rank_pattern": {}, "alpha_pattern": {},
    }  # fmt: skip
    aside = directory.with_name(f"incomplete.{directory.name}.{socket.gethostname()}.{os.getpid()}")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        aside.mkdir(parents=True)
        safetensors.numpy.save_file(tensors, aside / WEIGHTS, metadata={"format": "pt"})
        artifact.write_json(aside / CONFIG, config)
        template.save(aside, templates or {})
        aside.rename(directory)
    except (OSError, safetensors.SafetensorError) as error:
        raise artifact.disk_error(error, directory) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def read_peft(directory: Path, model: ModelConfig) -> dict:
    """The adapter in a directory that PEFT wrote: float32 on the host, as `init_adapter` lays it out.

    Raises BadInput for everything that would make it another function in `model` than it is in PEFT.
    """
    safetensors = _safetensors()
    _check_config(directory / CONFIG, model)
    path = directory / WEIGHTS
    if not path.is_file():
        raise BadInput(f"{path}: no such file; copy the adapter again, or convert the .bin file that old ones have")
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118 - it is no dict
            _check_tensors(path, {key: (part.get_shape(), part.get_dtype()) for key, part in slices.items()}, model)
            blocks = {}
            for leaf, module, letters in _leaves():
                shape = [model.sizes[letter] for letter in "".join(letters)]
                blocks[leaf] = np.empty([model.layers, *shape], np.float32)
                for layer in range(model.layers):
                    blocks[leaf][layer] = file.get_tensor(_key(layer, module)).T.reshape(shape)
    except (OSError, safetensors.SafetensorError) as error:
        raise BadInput(f"{path}: cut off, or no safetensors file ({error}); copy the adapter again") from None
    return {"blocks": blocks}


def merge(model: ModelConfig, params: dict, adapter: dict) -> dict:
    """The parameters with W + (lora_alpha / lora_rank) A B for each W, for `forward` with lora_rank 0.

    Computed in float32, one layer at a time, and rounded once to the dtype of W.
    """
    blocks = dict(params["blocks"])
    for name, (summed, out) in PROJECTIONS.items():
        leaf = f"{name}_L{summed}{out}"
        a, b = _pair(adapter, name)
        blocks[leaf] = _merge_leaf(f"{summed}R,R{out}->{summed}{out}", blocks[leaf], a, b, _scale(model))
    return {**params, "blocks": blocks}


@functools.partial(jax.jit, static_argnums=0)
def _merge_leaf(subscripts: str, w: jax.Array, a: jax.Array, b: jax.Array, scale: float) -> jax.Array:
    # A loop: the float32 product of all layers never exists. (On a CPU, XLA carries a bfloat16 stack through it as float32.)
    def merge_layer(layer):
        w, a, b = (array.astype(jnp.float32) for array in layer)
        return (w + scale * jnp.einsum(subscripts, a, b, precision="highest")).astype(layer[0].dtype)

    return jax.lax.map(merge_layer, (w, a, b))


def effective_norm(model: ModelConfig, adapter: dict) -> dict[str, float]:
    """Frobenius norm of (lora_alpha / lora_rank) A B: of all modules together (`all`), and of each projection over its layers."""
    return {name: _scale(model) * value**0.5 for name, value in _inner(adapter, adapter).items()}


def effective_cosine(one: dict, other: dict) -> dict[str, float]:
    """Cosine of what two adapters of one base do to its matrices: `all` and each projection; NaN where one does nothing.

    Their ranks may differ, and their scales (lora_alpha / lora_rank), which cancel.
    """
    products, ones, others = _inner(one, other), _inner(one, one), _inner(other, other)
    norms = {name: (ones[name] * others[name]) ** 0.5 for name in products}
    return {name: products[name] / norms[name] if norms[name] else math.nan for name in products}


def _inner(one: dict, other: dict) -> dict[str, float]:
    """<A B, A' B'> of `all` modules and of each projection's."""
    products = {name: float(_inner_pairs(name, *_pair(one, name), *_pair(other, name))) for name in PROJECTIONS}
    return {"all": sum(products.values()), **products}


@functools.partial(jax.jit, static_argnums=0)
def _inner_pairs(name: str, a, b, other_a, other_b) -> jax.Array:
    """Sum over layers of tr((A^T A') (B' B^T)): [R, R'] matrices, where A B would be as large as W."""
    summed, out = PROJECTIONS[name]
    a, b, other_a, other_b = (array.astype(jnp.float32) for array in (a, b, other_a, other_b))
    left_LRP = jnp.einsum(f"L{summed}R,L{summed}P->LRP", a, other_a, precision="highest")
    right_LRP = jnp.einsum(f"LR{out},LP{out}->LRP", b, other_b, precision="highest")
    return jnp.sum(left_LRP * right_LRP)


def _pair(adapter: dict, name: str) -> tuple[jax.Array, jax.Array]:
    summed, out = PROJECTIONS[name]
    return adapter["blocks"][f"{name}_a_L{summed}R"], adapter["blocks"][f"{name}_b_LR{out}"]


def _scale(model: ModelConfig) -> float:
    return model.lora_alpha / model.lora_rank


def _leaves() -> Iterator[tuple[str, str, tuple[str, str]]]:
    """Each leaf of the adapter: its name, PEFT's within a layer, and the letters of its rows and columns."""
    for name, (summed, out) in PROJECTIONS.items():
        yield f"{name}_a_L{summed}R", f"{MODULES[name]}.lora_A", (summed, "R")
        yield f"{name}_b_LR{out}", f"{MODULES[name]}.lora_B", ("R", out)


def _size(model: ModelConfig, letters: str) -> int:
    return math.prod(model.sizes[letter] for letter in letters)


def _key(layer: int, module: str) -> str:
    return f"base_model.model.model.layers.{layer}.{module}.weight"


def _check_config(path: Path, model: ModelConfig) -> None:
    """BadInput where adapter_config.json says anything but plain LoRA of the model's rank and alpha on the seven matrices."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadInput(f"{path}: cannot read ({error.strerror}); name a directory that PEFT's save_pretrained wrote") from None
    except ValueError as error:
        raise BadInput(f"{path}: not JSON ({error}); copy the adapter again") from None
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        said = config.get("peft_type") if isinstance(config, dict) else config
        raise BadInput(f"{path}: peft_type={said!r}, not 'LORA'; only LoRA adapters are read")
    for key, name in (("r", "lora_rank"), ("lora_alpha", "lora_alpha")):
        theirs, ours = config.get(key), getattr(model, name)
        if theirs != ours:
            raise BadInput(
                f"{path}: {key}={theirs!r}, but model.{name}={ours!r}; set that to the adapter's, or take another adapter"
            )
    targets = config.get("target_modules")
    named = targets if isinstance(targets, list) else []  # a string is a pattern
    missing, unknown = [name for name in TARGETS if name not in named], [name for name in named if name not in TARGETS]
    if missing or unknown:
        raise BadInput(
            f"{path}: target_modules={targets!r}: must be the list {', '.join(TARGETS)} (missing: {missing}, unknown: {unknown}); "
            "take an adapter of all seven"
        )
    initialisation = config.get("init_lora_weights", True)
    if initialisation not in INITIALISATIONS:
        raise BadInput(
            f"{path}: init_lora_weights={initialisation!r}: it may have changed the base too; convert it to plain LoRA (PEFT's "
            "path_initial_model_for_weight_conversion)"
        )
    for key, value in config.items():
        if key not in READ | IGNORED and value not in OFF:
            raise BadInput(
                f"{path}: {key}={value!r}: here, as plain LoRA, it would be another function; merge it into its base instead"
            )


def _check_tensors(path: Path, found: dict[str, tuple[list[int], str]], model: ModelConfig) -> None:
    """BadInput where a tensor is missing, unknown, misshapen or of another kind; `found` is key -> (shape, dtype)."""
    wanted = {_key(layer, module): letters[::-1] for layer in range(model.layers) for _, module, letters in _leaves()}
    wrong, sizes = [], {}  # the same in words: of a tensor, and of a size that several tensors have
    for key, letters in wanted.items():
        theirs, ours = found[key][0] if key in found else None, [_size(model, group) for group in letters]
        if theirs is not None and theirs != ours:
            wrong.append(f"{key} is {theirs} instead of {ours}")
            for group, one, other in zip(letters, theirs, ours, strict=False):
                if one != other:
                    sizes[group] = f"{SIZES[group]} {one} instead of {other}"
    layers = [int(match[1]) + 1 for key in found if (match := re.search(r"\.layers\.(\d+)\.", key))]
    if layers and max(layers) != model.layers:
        sizes["L"] = f"layers {max(layers)} instead of {model.layers}"
    wrong += [f"{key} is missing" for key in wanted if key not in found]
    wrong += [f"{key} is unknown" for key in found if key not in wanted]
    if wrong:
        more = f" and {len(wrong) - 1} more are wrong" if len(wrong) > 1 else ""
        differ = f"; made for another base: {', '.join(sizes.values())}" if sizes else ""
        raise BadInput(f"{path}: {wrong[0]}{more}{differ}; take the adapter of this model, or the model of this adapter")
    for key, (_, dtype) in found.items():
        if dtype not in DTYPES:
            raise BadInput(f"{path}: {key} has dtype {dtype}; must be one of {', '.join(DTYPES)}; convert it")


def _safetensors():
    try:
        import safetensors.numpy
    except ImportError:
        raise BadInput("safetensors: not installed; adapter files need it: pip install 'msmjax[huggingface]'") from None
    return safetensors
