"""Hugging Face directories, read and written: Llama 3, Qwen2.5 and Qwen3 (dense), as transformers keeps them.

In: a local directory of `config.json` and safetensors files, or our parameters. Out: fields of a ModelConfig, parameters on the
mesh, or a directory that transformers and vLLM read. A directory whose function is not ours is refused by the name of what differs.
Tensors pass the host one after the other: of each the slices are read that this process's devices hold, and turned and put into
their leaf there; on the way out the other way round.
"""

import contextlib
import dataclasses
import functools
import itertools
import json
import math
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from tqdm import tqdm

from msmjax import artifact
from msmjax.artifact import BadInput
from msmjax.data import template
from msmjax.model.transformer import ModelConfig, init_params

CONFIG, INDEX, SINGLE = "config.json", "model.safetensors.index.json", "model.safetensors"
SHARD_BYTES = 5 * 10**9  # of tensors in a written file
# What an export takes over from the directory it is made after, where it is there.
COMPANIONS = (
    "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "tokenizer.model", "vocab.json", "merges.txt", "chat_template.json",
)  # fmt: skip
DTYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}  # ours -> safetensors'

# Leaf -> its tensor's name (in a block after `model.layers.<layer>.`) and the letters of its axes: a matrix is [out, in] there.
TENSORS = {
    "embedding_VD": ("model.embed_tokens.weight", ("V", "D")),
    "final_norm_D": ("model.norm.weight", ("D",)),
    "unembedding_DV": ("lm_head.weight", ("V", "D")),
}
BLOCK_TENSORS = {
    "attention_norm_LD": ("input_layernorm.weight", ("D",)),
    "wq_LDNH": ("self_attn.q_proj.weight", ("NH", "D")),
    "wk_LDKH": ("self_attn.k_proj.weight", ("KH", "D")),
    "wv_LDKH": ("self_attn.v_proj.weight", ("KH", "D")),
    "wo_LNHD": ("self_attn.o_proj.weight", ("D", "NH")),
    "bq_LNH": ("self_attn.q_proj.bias", ("NH",)),
    "bk_LKH": ("self_attn.k_proj.bias", ("KH",)),
    "bv_LKH": ("self_attn.v_proj.bias", ("KH",)),
    "q_norm_LH": ("self_attn.q_norm.weight", ("H",)),
    "k_norm_LH": ("self_attn.k_norm.weight", ("H",)),
    "mlp_norm_LD": ("post_attention_layernorm.weight", ("D",)),
    "w_gate_LDF": ("mlp.gate_proj.weight", ("F", "D")),
    "w_up_LDF": ("mlp.up_proj.weight", ("F", "D")),
    "w_down_LFD": ("mlp.down_proj.weight", ("D", "F")),
}
IGNORED_TENSORS = re.compile(r".*rotary_emb\.inv_freq")  # old files keep it; the config says it too


@dataclasses.dataclass(frozen=True)
class Family:
    """A `model_type`: the architecture's name, what it always has, and the sizes its config must say (others have a default)."""

    architecture: str
    qkv_bias: bool
    qk_norm: bool
    must_say: tuple[str, ...]


FAMILIES = {
    "llama": Family("LlamaForCausalLM", qkv_bias=False, qk_norm=False, must_say=()),
    "qwen2": Family("Qwen2ForCausalLM", qkv_bias=True, qk_norm=False, must_say=("num_key_value_heads",)),
    "qwen3": Family("Qwen3ForCausalLM", qkv_bias=False, qk_norm=True, must_say=("num_key_value_heads", "head_dim")),
}

# ModelConfig's field -> the key of config.json that decides it.
KEYS = {
    "vocab": "vocab_size", "layers": "num_hidden_layers", "width": "hidden_size", "mlp": "intermediate_size",
    "heads": "num_attention_heads", "kv_heads": "num_key_value_heads", "head_dim": "head_dim", "rope_theta": "rope_theta",
    "rope_scaling": "rope_scaling", "norm_epsilon": "rms_norm_eps", "qkv_bias": "model_type", "qk_norm": "model_type",
    "tied_embeddings": "tie_word_embeddings",
}  # fmt: skip
READ = {*KEYS.values(), "architectures", "rope_parameters", "layer_types", "sliding_window"}
# Keys with the only value under which the function is ours; null is as good as missing.
ONLY = {
    "hidden_act": "silu", "attention_bias": False, "mlp_bias": False, "use_sliding_window": False, "use_mrope": False,
    "rope_interleaved": False, "partial_rotary_factor": 1, "is_encoder_decoder": False, "add_cross_attention": False,
    "quantization_config": None,
}  # fmt: skip
# Keys that leave the function of inference as it is, whatever they say.
HARMLESS = {
    "_name_or_path", "_commit_hash", "_attn_implementation", "_attn_implementation_autoset", "attn_implementation",
    "transformers_version", "transformers.js_config", "unsloth_version", "unsloth_fixed",
    "torch_dtype", "dtype", "use_cache", "initializer_range", "attention_dropout", "pretraining_tp", "max_position_embeddings",
    "max_window_layers", "bos_token_id", "eos_token_id", "pad_token_id", "tokenizer_class", "torchscript", "is_decoder",
    "output_attentions", "output_hidden_states", "return_dict", "use_return_dict", "chunk_size_feed_forward",
    "id2label", "label2id", "num_labels", "problem_type", "task_specific_params", "finetuning_task",
    "do_sample", "temperature", "top_k", "top_p", "repetition_penalty", "max_length", "max_new_tokens",
}  # fmt: skip
LLAMA3_ROPE = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
ROPE_THETA = 10_000.0  # of all three families, where config.json does not say


def read_config(directory: Path) -> dict:
    """The ModelConfig fields that `config.json` decides. Raises BadInput for what makes another function than ours, by name."""
    path = directory / CONFIG
    said = _read_json(path)
    family = FAMILIES.get(kind) if isinstance(kind := said.get("model_type"), str) else None
    if family is None:
        raise BadInput(f"{path}: model_type={kind!r}: unknown; must be one of {', '.join(FAMILIES)}")
    if (said.get("architectures") or [family.architecture]) != [family.architecture]:
        raise BadInput(f"{path}: architectures={said['architectures']!r}: must be ['{family.architecture}'] for {kind}")
    for key, value in said.items():
        if key in ONLY:
            if value is not None and value != ONLY[key]:
                must = f"must be {json.dumps(ONLY[key])}" if ONLY[key] is not None else "must not be there"
                raise BadInput(f"{path}: {key}={_short(value)}: not implemented, {must}; take another model")
        elif key not in READ | HARMLESS:
            raise BadInput(f"{path}: {key}={_short(value)}: unknown, so it may change the function; remove it if it does not")
    for key in family.must_say:
        if said.get(key) is None:
            raise BadInput(f"{path}: {key} is missing; copy the file again")
    width, heads = _number(path, said, "hidden_size"), _number(path, said, "num_attention_heads")
    if said.get("head_dim") is None and width % heads:
        raise BadInput(
            f"{path}: head_dim is missing, and hidden_size={width} does not divide by num_attention_heads={heads}; add it"
        )
    layers = _number(path, said, "num_hidden_layers")
    _check_attends_to_all(path, said, kind, layers)
    theta, scaling = _rope(path, said)
    tied = said.get("tie_word_embeddings") or False  # transformers: untied in all three families, where nothing is said
    if not isinstance(tied, bool):
        raise BadInput(f"{path}: tie_word_embeddings={tied!r}: must be true or false")
    return {
        "vocab": _number(path, said, "vocab_size"),
        "layers": layers,
        "width": width,
        "mlp": _number(path, said, "intermediate_size"),
        "heads": heads,
        "kv_heads": _number(path, {"num_key_value_heads": heads} | _without_null(said), "num_key_value_heads"),
        "head_dim": _number(path, {"head_dim": width // heads} | _without_null(said), "head_dim"),
        "rope_theta": theta,
        "rope_scaling": scaling,
        "norm_epsilon": _number(path, said, "rms_norm_eps", float),
        "qkv_bias": family.qkv_bias,
        "qk_norm": family.qk_norm,
        "tied_embeddings": tied,
    }


def check_config(directory: Path, model: ModelConfig) -> None:
    """Raises BadInput that names the first field in which `config.json` and the experiment's model differ."""
    for field, theirs in read_config(directory).items():
        ours = getattr(model, field)
        if tuple(ours) != theirs if field == "rope_scaling" else ours != theirs:
            raise BadInput(
                f"{directory / CONFIG}: {KEYS[field]} makes model.{field}={theirs!r}, but the experiment says {ours!r}; "
                "set that to the file's, or take the weights of another model"
            )


def read_params(directory: Path, model: ModelConfig, shardings: dict, dtype) -> dict:
    """The parameters as `init_params` lays them out, each leaf a jax.Array of `dtype` with its NamedSharding of `shardings`.

    Every process calls it and reads its own devices' slices. Of Hugging Face tensors (one layer's matrix, or the embedding) the
    host holds no more than three, in the file's dtype, and the devices two beside what is returned. Raises BadInput where
    config.json is not the model's, or a tensor is missing, unknown, misshapen or cannot be read.
    """
    check_config(directory, model)
    tensors = _tensors(model)
    leaves, structure = jax.tree_util.tree_flatten_with_path(shardings)
    with contextlib.ExitStack() as stack:
        found = _open(directory, stack)
        _check_tensors(directory, found, model)
        arrays = []
        for path, sharding in tqdm(leaves, desc=f"reading {directory.name}", unit="leaf", disable=None, leave=False):
            leaf = path[-1].key
            parts = [found[name][1] for name, tensor in tensors.items() if tensor.leaf == leaf]
            axes = next(tensor.axes for tensor in tensors.values() if tensor.leaf == leaf)
            arrays.append(_read_leaf(model, leaf, axes, parts, sharding, jnp.dtype(dtype)))
    return structure.unflatten(arrays)


def write_params(
    directory: Path, model: ModelConfig, params: dict, dtype, config_from: Path | None, templates: dict[str, str] | None = None
) -> None:
    """Writes what `transformers.AutoModelForCausalLM.from_pretrained` reads, its tensors in `dtype`.

    `config.json`, generation config and tokenizer are those of the Hugging Face directory `config_from`; without one there is no
    tokenizer, and the config is that of the family with the model's features. So are the chat templates, unless there are
    `templates` (by name, data/template.py). Every process calls it, and the first writes. Its host holds two tensors, and the
    devices two beside the parameters. Built aside and renamed: `directory` is whole or not there. Raises BadInput where something
    is there already.
    """
    dtype = jnp.dtype(dtype)
    config = _make_config(model, dtype) if config_from is None else _take_config(config_from, model, dtype)
    _check_params(model, params)
    arrays = _arrays(model, params, dtype)
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise BadInput(f"{directory}: exists already; remove it or write the export elsewhere")
    if jax.process_index() > 0:
        for array in arrays:  # gathering takes all processes
            array.block_until_ready()
        return
    aside = directory.with_name(f"incomplete.{directory.name}")
    with artifact.lock(aside):
        try:
            building = aside / "building"
            shutil.rmtree(building, ignore_errors=True)  # what a killed export left
            building.mkdir()
            for name in COMPANIONS if config_from is not None else ():
                if (config_from / name).is_file():
                    shutil.copyfile(config_from / name, building / name)
            if templates is None and config_from is not None:
                templates = template.read(config_from)
            template.save(building, templates or {})
            artifact.write_json(building / CONFIG, config)
            _write_tensors(building, model, dtype, arrays)
            building.rename(directory)
        except OSError as error:
            raise artifact.disk_error(error, directory) from error
        finally:
            shutil.rmtree(aside, ignore_errors=True)


# config.json


def _read_json(path: Path) -> dict:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadInput(f"{path}: cannot read ({error.strerror}); name a directory that save_pretrained wrote") from None
    except ValueError as error:
        raise BadInput(f"{path}: not JSON ({error}); copy the file again") from None
    if not isinstance(value, dict):
        raise BadInput(f"{path}: a {type(value).__name__}, not an object; copy the file again")
    return value


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _without_null(said: dict) -> dict:
    return {key: value for key, value in said.items() if value is not None}


def _number(path: Path, said: dict, key: str, kind: type = int):
    """A number above 0, as `kind`; a float may be written as a whole number."""
    value = said.get(key)
    if value is None:
        raise BadInput(f"{path}: {key} is missing; copy the file again")
    if isinstance(value, bool) or not isinstance(value, (int, kind)) or not 0 < value < math.inf:
        raise BadInput(f"{path}: {key}={_short(value)}: must be {'a whole number' if kind is int else 'a number'} above 0")
    return kind(value)


def _check_attends_to_all(path: Path, said: dict, kind: str, layers: int) -> None:
    """BadInput where some layer does not attend to the whole text."""
    types = said.get("layer_types")
    if types is not None and types != ["full_attention"] * layers:
        raise BadInput(f"{path}: layer_types={_short(types)}: must be {layers} times 'full_attention'; take another model")
    if kind == "llama" and said.get("sliding_window") is not None:  # the others have a switch for it, use_sliding_window
        raise BadInput(f"{path}: sliding_window={_short(said['sliding_window'])}: not implemented; take another model")


def _rope(path: Path, said: dict) -> tuple[float, tuple[float, ...]]:
    """ModelConfig's rope_theta and rope_scaling, from the keys of these names or from transformers 5's `rope_parameters`."""
    given = {key: said[key] for key in ("rope_scaling", "rope_parameters") if said.get(key)}
    if len(given) > 1 and given["rope_scaling"] != given["rope_parameters"]:
        raise BadInput(f"{path}: rope_scaling and rope_parameters differ; remove the wrong one")
    where, rope = next(iter(given.items()), ("rope_scaling", {}))
    if not isinstance(rope, dict):
        raise BadInput(f"{path}: {where}={_short(rope)}: must be an object")
    rope = {key: value for key, value in rope.items() if value is not None}
    kinds = {key: rope[key] for key in ("rope_type", "type") if key in rope}  # `type` is its old name
    for key, kind in kinds.items():
        if kind not in ("default", "llama3") or kind != next(iter(kinds.values())):
            raise BadInput(f"{path}: {where}.{key}={_short(kind)}: must be default or llama3, and only one; take another model")
    scaled = next(iter(kinds.values()), "default") == "llama3"
    for key, value in rope.items():
        if key == "partial_rotary_factor" and value != 1:
            raise BadInput(f"{path}: {where}.{key}={_short(value)}: not implemented, must be 1; take another model")
        if key not in {*kinds, "rope_theta", "partial_rotary_factor", *(LLAMA3_ROPE if scaled else ())}:
            raise BadInput(f"{path}: {where}.{key}={_short(value)}: unknown, so it may change the function; take another model")
    thetas = [_number(path, place, "rope_theta", float) for place in (rope, said) if place.get("rope_theta") is not None]
    if len(set(thetas)) > 1:
        raise BadInput(f"{path}: rope_theta={thetas[1]:g}, but {where}.rope_theta={thetas[0]:g}; remove the wrong one")
    scaling = tuple(_number(path, rope, key, float) for key in LLAMA3_ROPE) if scaled else ()
    return next(iter(thetas), ROPE_THETA), scaling


def _take_config(config_from: Path, model: ModelConfig, dtype: np.dtype) -> dict:
    """The config of a directory of this model, with `dtype` where it names one."""
    check_config(config_from, model)
    said = _read_json(config_from / CONFIG)
    return said | {key: dtype.name for key in ("dtype", "torch_dtype") if key in said}


def _make_config(model: ModelConfig, dtype: np.dtype) -> dict:
    """A config of the family that has the model's features, with the keys that old versions of transformers read too."""
    same = [kind for kind, family in FAMILIES.items() if (family.qkv_bias, family.qk_norm) == (model.qkv_bias, model.qk_norm)]
    if not same:
        raise BadInput("model.qkv_bias and model.qk_norm: no Hugging Face family has both; leave one out to export the model")
    kind = same[0]
    if kind == "llama" and model.width % model.heads:
        raise BadInput(
            f"model.width={model.width}: no multiple of model.heads={model.heads}, as transformers wants it of a Llama; change one"
        )
    plain = {key: getattr(model, field) for field, key in KEYS.items() if key not in ("model_type", "rope_scaling")}
    config = {
        "architectures": [FAMILIES[kind].architecture],
        "model_type": kind,
        **plain,
        "rope_scaling": None,
        "hidden_act": "silu",
        "attention_dropout": 0.0,
        "use_cache": True,
        "torch_dtype": dtype.name,
        **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id")),  # Llama's defaults are tokens of its own
    }
    if model.rope_scaling:
        factors = dict(zip(LLAMA3_ROPE, model.rope_scaling, strict=True))
        original = int(factors["original_max_position_embeddings"])
        config["rope_scaling"] = {"rope_type": "llama3", **factors, "original_max_position_embeddings": original}
        config["max_position_embeddings"] = int(factors["factor"] * original)
    return config


# Tensors


@dataclasses.dataclass(frozen=True)
class Tensor:
    """Where a Hugging Face tensor is in our parameters, and the letters of its axes."""

    leaf: str
    layer: int | None  # None: the leaf is not stacked
    axes: tuple[str, ...]

    def shape(self, model: ModelConfig) -> list[int]:
        return [math.prod(model.sizes[letter] for letter in group) for group in self.axes]


def _tensors(model: ModelConfig) -> dict[str, Tensor]:
    """The tensors of a model's Hugging Face directory by name, in their order there."""
    leaves = {path[-1].key for path, _ in jax.tree_util.tree_leaves_with_path(_abstract(model))}

    def outside(leaf):
        return {TENSORS[leaf][0]: Tensor(leaf, None, TENSORS[leaf][1])} if leaf in leaves else {}

    blocks = {
        f"model.layers.{layer}.{name}": Tensor(leaf, layer, axes)
        for layer in range(model.layers)
        for leaf, (name, axes) in BLOCK_TENSORS.items()
        if leaf in leaves
    }
    return {**outside("embedding_VD"), **blocks, **outside("final_norm_D"), **outside("unembedding_DV")}


def _abstract(model: ModelConfig) -> dict:
    return jax.eval_shape(lambda: init_params(model, jax.random.key(0)))


def _letters(leaf: str) -> str:
    return leaf.rpartition("_")[2]


def _safetensors():
    try:
        import safetensors
    except ImportError:
        raise BadInput("safetensors: not installed; weights are read with it: pip install -e '.[huggingface]'") from None
    return safetensors


def _open(directory: Path, stack: contextlib.ExitStack) -> dict[str, tuple[Path, object]]:
    """Name -> its file and its lazy slice, for all tensors of the directory; the headers are checked, the data not read."""
    safetensors = _safetensors()
    found = {}
    for path, promised in _files(directory).items():
        try:
            file = stack.enter_context(safetensors.safe_open(path, framework="numpy"))
            names = list(file.keys())
        except (OSError, safetensors.SafetensorError) as error:
            raise BadInput(f"{path}: cut off, or no safetensors file ({error}); copy it again") from None
        for name in names:
            if name in found:
                raise BadInput(f"{path}: {name} is in {found[name][0].name} too; remove the file that does not belong there")
            found[name] = path, file.get_slice(name)
        if lost := sorted(promised - set(names)):
            raise BadInput(f"{path}: no tensor {lost[0]}, though {INDEX} says so ({len(lost)} in all); copy both again")
    return found


def _files(directory: Path) -> dict[Path, set[str]]:
    """The safetensors files of a directory, each with the names of the tensors that the index promises."""
    single, index = directory / SINGLE, directory / INDEX
    if single.is_file() and index.is_file():
        raise BadInput(f"{directory}: has {SINGLE} and {INDEX}; remove the one that is not meant")
    if single.is_file():
        return {single: set()}
    if not index.is_file():
        raise BadInput(f"{directory}: neither {SINGLE} nor {INDEX} is there; only safetensors files are read")
    places = _read_json(index).get("weight_map")
    if not isinstance(places, dict) or not places or not all(isinstance(name, str) for name in places.values()):
        raise BadInput(f"{index}: no weight_map from tensors to files; copy it again")
    files = {directory / name: {tensor for tensor, where in places.items() if where == name} for name in places.values()}
    for path in files:
        if not path.is_file():
            raise BadInput(f"{path}: no such file, though {INDEX} names it; copy it from where the others are from")
    return files


def _check_tensors(directory: Path, found: dict[str, tuple[Path, object]], model: ModelConfig) -> None:
    """BadInput where the tensors are not those of the model, in name, shape and kind."""
    wanted, wrong = _tensors(model), []
    for name, (path, part) in found.items():
        if name not in wanted:
            if name == "lm_head.weight" and model.tied_embeddings:
                _check_tied(path, part, found)
            elif not IGNORED_TENSORS.fullmatch(name):
                wrong.append(f"{path}: {name} is unknown")
        elif part.get_shape() != wanted[name].shape(model):
            wrong.append(f"{path}: {name} is {part.get_shape()} instead of {wanted[name].shape(model)}")
        elif part.get_dtype() not in DTYPES.values():
            wrong.append(f"{path}: {name} has dtype {part.get_dtype()}, not one of {', '.join(DTYPES.values())}")
    wrong += [f"{directory}: {name} is missing" for name in wanted if name not in found]
    if wrong:
        more = f" and {len(wrong) - 1} more are wrong" if len(wrong) > 1 else ""
        raise BadInput(f"{wrong[0]}{more}; the files are cut short, or those of another model than {CONFIG} says")


def _check_tied(path: Path, head, found: dict[str, tuple[Path, object]]) -> None:
    """BadInput where a tied model has an output matrix of its own, which transformers would then use."""
    _, embedding = found.get("model.embed_tokens.weight", (None, head))  # a missing one is found missing
    vocab, rows = embedding.get_shape()[0], 4096
    blocks = [slice(start, min(start + rows, vocab)) for start in range(0, vocab, rows)]
    if head.get_shape() != embedding.get_shape() or not all(np.array_equal(head[block], embedding[block]) for block in blocks):
        raise BadInput(
            f"{path}: lm_head.weight is not model.embed_tokens.weight, though tie_word_embeddings is true; set that to false, and "
            "model.tied_embeddings"
        )


def _read_leaf(model: ModelConfig, leaf: str, axes, parts: list, sharding: NamedSharding, dtype: np.dtype) -> jax.Array:
    """One leaf from its tensors, one a layer; each is put into the leaf, on the devices, before the next is read."""
    letters = _letters(leaf)
    mesh_axes = dict(itertools.zip_longest(letters, sharding.spec))  # a spec may be shorter than the shape
    # Of letters that share an axis of the file the first can be cut there; another one's cut is made on the devices.
    placed = NamedSharding(sharding.mesh, PartitionSpec(*(mesh_axes[group[0]] for group in axes)))
    empty, put, turned = _importers(tuple(model.sizes[letter] for letter in letters), letters, axes, sharding, dtype)
    if letters[0] != "L":
        return turned(_place(parts[0], placed))
    array = empty()
    for layer, part in enumerate(parts):
        # Waited for: else the host would read ahead and hold what the devices have not taken yet.
        array = jax.block_until_ready(put(array, layer, _place(part, placed)))
    return array


def _place(part, sharding: NamedSharding) -> jax.Array:
    """A tensor on the devices, laid out as in its file; what several devices hold is read once."""
    shape = tuple(part.get_shape())
    read = functools.cache(lambda bounds: part[tuple(slice(start, stop) for start, stop, _ in bounds)])
    return jax.make_array_from_callback(
        shape, sharding, lambda index: read(tuple(one.indices(size) for one, size in zip(index, shape, strict=True)))
    )


@functools.cache  # leaves of a kind share what is compiled
def _importers(shape: tuple[int, ...], letters: str, axes: tuple[str, ...], sharding: NamedSharding, dtype: np.dtype) -> tuple:
    """Programs that make an empty leaf, put a tensor at a layer of it, in place, and turn a tensor into a leaf."""
    flat, sizes = "".join(axes), dict(zip(letters, shape, strict=True))

    def turned(tensor):
        order = [flat.index(letter) for letter in letters.removeprefix("L")]
        return tensor.reshape([sizes[letter] for letter in flat]).transpose(order).astype(dtype)

    def put(leaf, layer, tensor):
        return jax.lax.dynamic_update_index_in_dim(leaf, turned(tensor), layer, axis=0)

    return (
        jax.jit(lambda: jnp.zeros(shape, dtype), out_shardings=sharding),
        jax.jit(put, donate_argnums=0, out_shardings=sharding),
        jax.jit(turned, out_shardings=sharding),
    )


# Export


def _check_params(model: ModelConfig, params: dict) -> None:
    """An adapter beside the parameters, or a leaf of another shape, has no place in the files."""
    ours, theirs = (
        {jax.tree_util.keystr(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
        for tree in (_abstract(model), params)
    )
    for name in ours | theirs:
        if ours.get(name) != theirs.get(name):
            raise ValueError(
                f"params{name} is {theirs.get(name)}, and the model's is {ours.get(name)}; merge an adapter before export"
            )


def _arrays(model: ModelConfig, params: dict, dtype: np.dtype) -> Iterator[jax.Array]:
    """The tensors in the order of `_tensors`, each made when it is asked for and whole on every device."""
    leaves = {path[-1].key: leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    for tensor in _tensors(model).values():
        leaf = leaves[tensor.leaf]
        mesh = leaf.sharding.mesh if isinstance(leaf.sharding, NamedSharding) else None
        yield _exporter(_letters(tensor.leaf), tensor.axes, mesh, dtype)(leaf, tensor.layer or 0)


@functools.cache
def _exporter(letters: str, axes: tuple[str, ...], mesh, dtype: np.dtype):
    """The program that takes a tensor out of a leaf, laid out as in its file."""

    def take(leaf, layer):
        one = jax.lax.dynamic_index_in_dim(leaf, layer, keepdims=False) if letters[0] == "L" else leaf
        inner = letters.removeprefix("L")
        sizes = dict(zip(inner, one.shape, strict=True))
        turned = one.transpose([inner.index(letter) for letter in "".join(axes)])
        return turned.reshape([math.prod(sizes[letter] for letter in group) for group in axes]).astype(dtype)

    return jax.jit(take, out_shardings=None if mesh is None else NamedSharding(mesh, PartitionSpec()))


def _write_tensors(directory: Path, model: ModelConfig, dtype: np.dtype, arrays: Iterator[jax.Array]) -> None:
    """The safetensors files and, where there are several, their index."""
    shapes = {name: tensor.shape(model) for name, tensor in _tensors(model).items()}
    sizes = {name: math.prod(shape) * dtype.itemsize for name, shape in shapes.items()}
    shards, room = [], 0
    for name, size in sizes.items():
        if not shards or size > room:
            shards.append([])
            room = SHARD_BYTES
        shards[-1].append(name)
        room -= size
    files = [f"model-{number:05}-of-{len(shards):05}.safetensors" for number in range(1, len(shards) + 1)]
    if len(shards) == 1:
        files = [SINGLE]
    else:
        places = {name: file for file, names in zip(files, shards, strict=True) for name in names}
        artifact.write_json(directory / INDEX, {"metadata": {"total_size": sum(sizes.values())}, "weight_map": places})
    with tqdm(total=len(shapes), desc=f"writing {model.layers} layers", unit="tensor", disable=None, leave=False) as bar:
        for file, names in zip(files, shards, strict=True):
            with (directory / file).open("wb") as out:
                out.write(_header({name: shapes[name] for name in names}, dtype))
                for array in itertools.islice(arrays, len(names)):
                    _write_tensor(out, np.asarray(array))
                    bar.update()
                out.flush()
                os.fsync(out.fileno())


def _header(shapes: dict[str, list[int]], dtype: np.dtype) -> bytes:
    """What a safetensors file starts with: the length of its JSON in 8 bytes, and the JSON.

    Written here because the library takes all tensors of a file at once.
    """
    header, start = {"__metadata__": {"format": "pt"}}, 0
    for name, shape in shapes.items():
        stop = start + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": DTYPES[dtype.name], "shape": shape, "data_offsets": [start, stop]}
        start = stop
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors start at a multiple of 8
    return len(text).to_bytes(8, "little") + text


def _write_tensor(file, array: np.ndarray) -> None:
    file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
