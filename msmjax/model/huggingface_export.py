"""Hugging Face directories, written: our parameters as transformers and vLLM read them.

In: parameters, and maybe the directory that the model is made after. Out: a directory of `config.json`, safetensors files and
what comes with them. Tensors pass the host one after the other: each is taken out of its leaf, and turned, on the devices.
"""

import functools
import itertools
import json
import math
import os
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
from msmjax.model import huggingface_config
from msmjax.model.huggingface import DTYPES, INDEX, SINGLE, abstract_params, letters_of, tensors_of
from msmjax.model.huggingface_config import CONFIG
from msmjax.model.transformer import ModelConfig

SHARD_BYTES = 5 * 10**9  # of tensors in a written file
# What an export takes over from the directory it is made after, where it is there.
COMPANIONS = (
    "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "tokenizer.model", "vocab.json", "merges.txt", "chat_template.json",
)  # fmt: skip


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
    config = huggingface_config.make(model, dtype) if config_from is None else _take_config(config_from, model, dtype)
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


def _take_config(config_from: Path, model: ModelConfig, dtype: np.dtype) -> dict:
    """The config of a directory of this model, with `dtype` where it names one."""
    huggingface_config.check(config_from, model)
    said = huggingface_config.read_json(config_from / CONFIG)
    return said | {key: dtype.name for key in ("dtype", "torch_dtype") if key in said}


def _check_params(model: ModelConfig, params: dict) -> None:
    """An adapter beside the parameters, or a leaf of another shape, has no place in the files."""
    ours, theirs = (
        {jax.tree_util.keystr(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
        for tree in (abstract_params(model), params)
    )
    for name in ours | theirs:
        if ours.get(name) != theirs.get(name):
            raise ValueError(
                f"params{name} is {theirs.get(name)}, and the model's is {ours.get(name)}; merge an adapter before export"
            )


def _arrays(model: ModelConfig, params: dict, dtype: np.dtype) -> Iterator[jax.Array]:
    """The tensors in the order of `tensors_of`, each made when it is asked for and whole on every device."""
    leaves = {path[-1].key: leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    for tensor in tensors_of(model).values():
        leaf = leaves[tensor.leaf]
        mesh = leaf.sharding.mesh if isinstance(leaf.sharding, NamedSharding) else None
        yield _exporter(letters_of(tensor.leaf), tensor.axes, mesh, dtype)(leaf, tensor.layer or 0)


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
    shapes = {name: tensor.shape(model) for name, tensor in tensors_of(model).items()}
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
