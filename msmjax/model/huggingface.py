"""Hugging Face directories, read: their tensors as our parameters.

In: a local directory of `config.json` and safetensors files. Out: parameters on the mesh. Tensors pass the host one after the
other: of each the slices are read that this process's devices hold, and turned and put into their leaf there. huggingface_config.py
says whether the function is ours, and huggingface_export.py goes the other way.
"""

import contextlib
import dataclasses
import functools
import itertools
import math
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from tqdm import tqdm

from msmjax.artifact import BadInput
from msmjax.model import huggingface_config
from msmjax.model.huggingface_config import CONFIG
from msmjax.model.transformer import ModelConfig, init_params

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
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


def read_params(directory: Path, model: ModelConfig, shardings: dict, dtype) -> dict:
    """The parameters as `init_params` lays them out, each leaf a jax.Array of `dtype` with its NamedSharding of `shardings`.

    Every process calls it and reads its own devices' slices. Of Hugging Face tensors (one layer's matrix, or the embedding) the
    host holds no more than three, in the file's dtype, and the devices two beside what is returned. Raises BadInput where
    config.json is not the model's, or a tensor is missing, unknown, misshapen or cannot be read.
    """
    huggingface_config.check(directory, model)
    tensors = tensors_of(model)
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


@dataclasses.dataclass(frozen=True)
class Tensor:
    """Where a Hugging Face tensor is in our parameters, and the letters of its axes."""

    leaf: str
    layer: int | None  # None: the leaf is not stacked
    axes: tuple[str, ...]

    def shape(self, model: ModelConfig) -> list[int]:
        return [math.prod(model.sizes[letter] for letter in group) for group in self.axes]


def tensors_of(model: ModelConfig) -> dict[str, Tensor]:
    """The tensors of a model's Hugging Face directory by name, in their order there."""
    leaves = {path[-1].key for path, _ in jax.tree_util.tree_leaves_with_path(abstract_params(model))}

    def outside(leaf):
        return {TENSORS[leaf][0]: Tensor(leaf, None, TENSORS[leaf][1])} if leaf in leaves else {}

    blocks = {
        f"model.layers.{layer}.{name}": Tensor(leaf, layer, axes)
        for layer in range(model.layers)
        for leaf, (name, axes) in BLOCK_TENSORS.items()
        if leaf in leaves
    }
    return {**outside("embedding_VD"), **blocks, **outside("final_norm_D"), **outside("unembedding_DV")}


def abstract_params(model: ModelConfig) -> dict:
    """The parameters as shapes."""
    return jax.eval_shape(lambda: init_params(model, jax.random.key(0)))


def letters_of(leaf: str) -> str:
    """The letters of a leaf's axes, which its name ends in."""
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
    places = huggingface_config.read_json(index).get("weight_map")
    if not isinstance(places, dict) or not places or not all(isinstance(name, str) for name in places.values()):
        raise BadInput(f"{index}: no weight_map from tensors to files; copy it again")
    files = {directory / name: {tensor for tensor, where in places.items() if where == name} for name in places.values()}
    for path in files:
        if not path.is_file():
            raise BadInput(f"{path}: no such file, though {INDEX} names it; copy it from where the others are from")
    return files


def _check_tensors(directory: Path, found: dict[str, tuple[Path, object]], model: ModelConfig) -> None:
    """BadInput where the tensors are not those of the model, in name, shape and kind."""
    wanted, wrong = tensors_of(model), []
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
    letters = letters_of(leaf)
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
