"""Hugging Face directories that we write: transformers loads them as the same function, and they are whole or not there."""

import dataclasses
import functools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from msmjax import artifact
from msmjax.artifact import BadInput
from msmjax.data import template
from msmjax.model import huggingface, huggingface_config, huggingface_export, transformer
from msmjax.model.transformer import ModelConfig
from tests.models import (
    LARGEST,
    OTHER,
    leaves_equal,
    logits_of,
    mesh_of,
    random_params,
    read,
    shardings_of,
    tensors_in,
    tokens_for,
    torch_logits,
    torch_model,
)


@pytest.mark.parametrize("name", ["llama", "llama tied", "llama odd", "qwen2", "qwen2 odd", "qwen3 tied"])
@pytest.mark.parametrize("like_it", [True, False])
def test_round_trip(saved, name, like_it, tmp_path):
    """The exported files have the bytes that were read, and transformers loads them as the same function."""
    model, params = read(saved(name))
    huggingface_export.write_params(tmp_path / "out", model, params, "float32", saved(name) if like_it else None)
    assert tensors_in(tmp_path / "out") == tensors_in(saved(name))
    assert huggingface_config.read(tmp_path / "out") == huggingface_config.read(saved(name))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", attn_implementation="eager")
    assert type(theirs) is type(torch_model(name))
    tokens_BT = tokens_for(model)
    np.testing.assert_array_equal(torch_logits(theirs, tokens_BT), torch_logits(torch_model(name), tokens_BT))
    assert leaves_equal(read(tmp_path / "out")[1], params)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("own", ["files", "config"])
def test_chat_templates_are_exported(saved, own, tmp_path):
    """All of them, those in additional_chat_templates/ too; or those that are given in their stead."""
    shutil.copytree(saved("llama"), tmp_path / "from")
    if own == "files":
        (tmp_path / "from" / "additional_chat_templates").mkdir()
        (tmp_path / "from" / "chat_template.jinja").write_text("chat")
        (tmp_path / "from" / "additional_chat_templates" / "tool_use.jinja").write_text("tools")
    else:
        both = [{"name": "default", "template": "chat"}, {"name": "tool_use", "template": "tools"}]
        (tmp_path / "from" / "tokenizer_config.json").write_text(json.dumps({"chat_template": both}))
    model, params = read(tmp_path / "from")
    huggingface_export.write_params(tmp_path / "out", model, params, "float32", tmp_path / "from")
    assert template.read(tmp_path / "out") == {"default": "chat", "tool_use": "tools"}
    huggingface_export.write_params(tmp_path / "given", model, params, "float32", tmp_path / "from", {"default": "mine"})
    assert template.read(tmp_path / "given") == {"default": "mine"}


def test_round_trip_of_bfloat16_in_several_files(sharded, monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_export, "SHARD_BYTES", 20_000)
    model, params = read(sharded, "bfloat16")
    huggingface_export.write_params(tmp_path / "out", model, params, jnp.bfloat16, sharded)
    files = sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
    assert len(files) > 2
    assert files[1] == f"model-00002-of-{len(files):05}.safetensors"
    assert all((tmp_path / "out" / name).stat().st_size < 20_000 + 2000 for name in files)
    tensors = tensors_in(tmp_path / "out")
    assert tensors == tensors_in(sharded)
    index = json.loads((tmp_path / "out" / huggingface.INDEX).read_text())
    assert index["weight_map"].keys() == tensors.keys()
    assert index["metadata"]["total_size"] == sum(len(data) for _, _, data in tensors.values())
    for name in ("config.json", "tokenizer.json", "generation_config.json"):
        assert json.loads((tmp_path / "out" / name).read_text()) == json.loads((sharded / name).read_text())
    one, two = (transformers.AutoModelForCausalLM.from_pretrained(path) for path in (sharded, tmp_path / "out"))
    assert two.dtype == torch.bfloat16
    np.testing.assert_array_equal(torch_logits(one, tokens_for(model)), torch_logits(two, tokens_for(model)))


def test_dtypes_are_changed_both_ways(sharded, tmp_path):
    """bfloat16 files as float32 parameters, and those as float32 files: loaded as such, though the config came with bfloat16."""
    model, params = read(sharded)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    assert leaves_equal(jax.tree.map(lambda leaf: leaf.astype("bfloat16"), params), read(sharded, "bfloat16")[1])
    huggingface_export.write_params(tmp_path / "out", model, params, "float32", sharded)
    assert transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").dtype == torch.float32
    huggingface_export.write_params(tmp_path / "back", model, params, "bfloat16", None)
    assert tensors_in(tmp_path / "back") == tensors_in(sharded)


@pytest.mark.parametrize("sizes", [(2, 2, 2), (1, 8, 1), (8, 1, 1)])
def test_any_mesh_reads_and_writes_the_same(saved, sizes, tmp_path):
    one = read(saved("qwen2"))[1]
    mesh = mesh_of(*sizes)
    model, params = read(saved("qwen2"), mesh=mesh)
    assert leaves_equal(params, one)
    assert jax.tree.map(lambda leaf: leaf.sharding, params) == shardings_of(model, mesh)
    huggingface_export.write_params(tmp_path / "out", model, params, "float32", None)
    assert tensors_in(tmp_path / "out") == tensors_in(saved("qwen2"))


ROOT = Path(__file__).resolve().parents[2]
PROCESS = """
import sys
from pathlib import Path
import jax
jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
from msmjax.model import huggingface, huggingface_config, huggingface_export, transformer
from msmjax.model.transformer import ModelConfig
from msmjax.training import sharding
source, out = Path(sys.argv[3]), Path(sys.argv[4])
model = ModelConfig(**huggingface_config.read(source), **eval(sys.argv[5]))
mesh = sharding.make_mesh(sharding.MeshConfig(data=1, fsdp=2, tensor=2))
abstract = jax.eval_shape(lambda: transformer.init_params(model, jax.random.key(0)))
params = huggingface.read_params(source, model, sharding.tree_shardings(mesh, abstract), "bfloat16")
assert not params["embedding_VD"].is_fully_addressable
huggingface_export.write_params(out, model, params, "bfloat16", source)
"""


def test_two_processes(sharded, free_port, tmp_path):
    """Two processes of two devices, each of which reads its own slices, write together what was read."""
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": "2", "PYTHONPATH": str(ROOT)}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, f"localhost:{free_port}", str(number), sharded, tmp_path / "out", repr(OTHER)],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for number in range(2)
    ]  # fmt: skip
    for process in processes:
        said, _ = process.communicate(timeout=120)
        assert process.returncode == 0, said
    assert tensors_in(tmp_path / "out") == tensors_in(sharded)


@pytest.fixture
def free_port():
    import socket

    with socket.socket() as one:
        one.bind(("localhost", 0))
        return one.getsockname()[1]


def test_writing_holds_one_tensor(deep, monkeypatch, tmp_path):
    """Beside the parameters there is never more than one tensor, and the one before it while it is freed."""
    model, params = read(deep)
    held = []
    write = huggingface_export._write_tensor
    before = sum(array.nbytes for array in jax.live_arrays())
    monkeypatch.setattr(
        huggingface_export,
        "_write_tensor",
        lambda file, array: (held.append(sum(one.nbytes for one in jax.live_arrays()) - before), write(file, array)),
    )
    huggingface_export.write_params(tmp_path / "out", model, params, "float32", None)
    assert len(held) == 16 * 9 + 3
    assert LARGEST <= max(held) <= 2 * LARGEST


def test_a_killed_export_leaves_nothing(saved, monkeypatch, tmp_path):
    """What stops it, at whatever tensor, leaves no directory; the next one goes through."""
    model, params = read(saved("qwen2"))
    write, written = huggingface_export._write_tensor, []

    def stopped(file, array):
        written.append(array)
        if len(written) == 7:
            raise artifact.Preempted
        write(file, array)

    with monkeypatch.context() as patch:
        patch.setattr(huggingface_export, "_write_tensor", stopped)
        with pytest.raises(artifact.Preempted):
            huggingface_export.write_params(tmp_path / "out", model, params, "float32", None)
    assert not list(tmp_path.iterdir())
    # SIGKILL leaves what it had, beside: it is removed by the next export to the same place.
    (tmp_path / "incomplete.out" / "building").mkdir(parents=True)
    (tmp_path / "incomplete.out" / "building" / "model-00007-of-00009.safetensors").write_text("half")
    huggingface_export.write_params(tmp_path / "out", model, params, "float32", None)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["config.json", "model.safetensors"]


def test_export_refusals(saved, tmp_path):
    model, params = read(saved("qwen2"))
    export = functools.partial(huggingface_export.write_params, model=model, params=params, dtype="float32", config_from=None)
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "notes").write_text("mine")
    with pytest.raises(BadInput, match="there: exists already; remove it or write the export elsewhere"):
        export(tmp_path / "there")
    with pytest.raises(BadInput, match=r"config.json: num_key_value_heads makes model.kv_heads=1, but the experiment says 2"):
        export(tmp_path / "out", config_from=saved("qwen2 tied"))
    both = dataclasses.replace(model, qk_norm=True)
    with pytest.raises(BadInput, match="no Hugging Face family has both"):
        export(tmp_path / "out", model=both, params=random_params(both))
    uneven = dataclasses.replace(model, qkv_bias=False, heads=6)
    with pytest.raises(BadInput, match=r"model\.width=32: no multiple of model\.heads=6, as transformers wants it of a Llama"):
        export(tmp_path / "out", model=uneven, params=random_params(uneven))
    with_adapter = transformer.with_adapter(params, {"blocks": {"wq_a_LDR": jnp.zeros([2, 32, 2])}})
    with pytest.raises(ValueError, match="merge an adapter before export"):
        export(tmp_path / "out", params=with_adapter)
    with pytest.raises(ValueError, match=r"\['embedding_VD'\] is None"):
        export(tmp_path / "out", params={name: leaf for name, leaf in params.items() if name != "embedding_VD"})
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


def test_a_full_disk_is_said(saved, monkeypatch, tmp_path):
    model, params = read(saved("qwen2"))

    def full(file, array):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(huggingface_export, "_write_tensor", full)
    with pytest.raises(BadInput, match="out: cannot write"):
        huggingface_export.write_params(tmp_path / "out", model, params, "float32", None)
    assert not list(tmp_path.iterdir())


def test_parameters_of_our_own_become_a_model_of_transformers(tmp_path):
    """Made here and never imported: a Qwen3 with scaled rotary positions, as parameters that are on no mesh."""
    fields = {
        "vocab": 50, "layers": 2, "width": 24, "mlp": 40, "heads": 4, "kv_heads": 2, "head_dim": 8, "rope_theta": 1e4,
        "rope_scaling": (8.0, 1.0, 4.0, 32.0), "norm_epsilon": 1e-6, "qkv_bias": False, "qk_norm": True, "tied_embeddings": True,
    }  # fmt: skip
    model = ModelConfig(**fields, **OTHER)
    params = random_params(model)
    huggingface_export.write_params(tmp_path / "out", model, params, "float32", None)
    assert huggingface_config.read(tmp_path / "out") == fields
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", attn_implementation="eager")
    assert isinstance(theirs, transformers.Qwen3ForCausalLM)
    assert theirs.config.eos_token_id is None
    tokens_BT = tokens_for(model)
    np.testing.assert_allclose(logits_of(model, params, tokens_BT), torch_logits(theirs, tokens_BT), atol=1e-4, rtol=0)
