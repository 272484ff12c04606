"""Hugging Face directories: what transformers wrote is the same function here, what we write is it there, and the rest is refused.

The models are tiny, randomly initialised by transformers and saved by it.
"""

import dataclasses
import functools
import json
import os
import shutil
import subprocess
import sys
import tracemalloc
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import torch
import transformers
from jax.sharding import AxisType

from msmjax import artifact
from msmjax.artifact import BadInput
from msmjax.data import template
from msmjax.model import huggingface, transformer
from msmjax.model.transformer import ModelConfig
from msmjax.training import sharding

torch.set_num_threads(1)
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

ROOT = Path(__file__).resolve().parents[2]
BATCH, LENGTH = 3, 72  # more than twice the original length of the scaled rotary positions
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip
SIZES = {
    "vocab_size": 96, "num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4,
    "num_key_value_heads": 2, "rms_norm_eps": 1e-5, "max_position_embeddings": 256,
    "bos_token_id": None, "eos_token_id": None, "pad_token_id": None,
}  # fmt: skip
ODD = {
    "vocab_size": 101, "num_hidden_layers": 3, "hidden_size": 42, "intermediate_size": 77, "num_attention_heads": 3,
    "num_key_value_heads": 1, "tie_word_embeddings": False,
}  # fmt: skip
MODELS = {
    "llama": (transformers.LlamaConfig, {"rope_parameters": LLAMA3, "tie_word_embeddings": False}),
    "llama tied": (transformers.LlamaConfig, {"rope_parameters": LLAMA3, "tie_word_embeddings": True, "head_dim": 16}),
    "llama odd": (transformers.LlamaConfig, ODD),
    "qwen2": (transformers.Qwen2Config, {"tie_word_embeddings": False}),
    "qwen2 tied": (transformers.Qwen2Config, {"tie_word_embeddings": True, "num_key_value_heads": 1}),
    "qwen2 odd": (transformers.Qwen2Config, {**ODD, "num_key_value_heads": 3}),
    "qwen3": (transformers.Qwen3Config, {"tie_word_embeddings": False, "head_dim": 12}),
    "qwen3 tied": (transformers.Qwen3Config, {"tie_word_embeddings": True, "head_dim": 16}),
    "qwen3 odd": (transformers.Qwen3Config, {**ODD, "head_dim": 10}),
}  # fmt: skip
# What a ModelConfig has beside what config.json decides.
OTHER = {
    "embedding_init": 0.02, "matrix_init": 1.0, "lora_rank": 0, "lora_alpha": 0.0, "compute_dtype": "float32", "scan_layers": False,
    "remat": "none", "attention": "xla",
}  # fmt: skip


@functools.cache
def torch_model(name):
    """A model of transformers whose every parameter is random, norms and biases too, and whose logits are far from even."""
    kind, changes = MODELS[name]
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(kind(**{**SIZES, **changes}), attn_implementation="eager")
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "norm" in key:
                parameter.copy_(torch.rand_like(parameter) + 0.5)
            elif key.endswith("bias"):
                parameter.copy_(torch.randn_like(parameter))
            else:
                fan_in = 12 if "embed" in key else parameter.shape[1]  # of a tied embedding: logits of standard deviation 1.6
                parameter.copy_(torch.randn_like(parameter) * fan_in**-0.5 * (1.6 if "lm_head" in key else 1))
    return model.eval()


def rounded(name):
    """A copy of the model in bfloat16."""
    model = transformers.AutoModelForCausalLM.from_config(torch_model(name).config)
    model.load_state_dict(torch_model(name).state_dict())
    return model.to(torch.bfloat16)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """`saved(name)`: the directory in which transformers saved the model of that name."""

    @functools.cache
    def save(name):
        directory = tmp_path_factory.mktemp("saved") / name.replace(" ", "_")
        torch_model(name).save_pretrained(directory)
        return directory

    return save


def model_of(directory, **changes):
    return ModelConfig(**huggingface.read_config(directory), **{**OTHER, **changes})


def mesh_of(*sizes):
    devices = jax.devices()[: int(np.prod(sizes))]
    return jax.make_mesh(sizes, ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3, devices=devices)


def random_params(model):
    """Parameters that are on no mesh."""
    rng = np.random.default_rng(1)
    abstract = jax.eval_shape(lambda: transformer.init_params(model, jax.random.key(0)))
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape) * 0.3, jnp.float32), abstract)


def shardings_of(model, mesh):
    return sharding.tree_shardings(mesh, jax.eval_shape(lambda: transformer.init_params(model, jax.random.key(0))))


def read(directory, dtype="float32", mesh=None, **changes):
    model = model_of(directory, **changes)
    return model, huggingface.read_params(directory, model, shardings_of(model, mesh or mesh_of(1, 1, 1)), dtype)


@functools.partial(jax.jit, static_argnums=0, compiler_options={"xla_backend_optimization_level": 0})  # compiles twice as fast
def logits_and_gradients(model, params, tokens_BT):
    """Logits [B, T, V], and the gradients of the mean next-token loss."""

    def loss(params):
        logits_BTV = transformer.unembed(model, params, transformer.forward(model, params, tokens_BT, jnp.ones_like(tokens_BT)))
        log_probs = jax.nn.log_softmax(logits_BTV[:, :-1])
        return -jnp.mean(jnp.take_along_axis(log_probs, tokens_BT[:, 1:, None], axis=-1)), logits_BTV

    gradients, logits_BTV = jax.grad(loss, has_aux=True)(params)
    return logits_BTV, gradients


def logits_of(model, params, tokens_BT):
    return np.asarray(logits_and_gradients(model, params, tokens_BT)[0])


def tokens_for(model, length=LENGTH):
    return np.random.default_rng(0).integers(0, model.vocab, (BATCH, length)).astype(np.int32)


def torch_logits(model, tokens_BT):
    with torch.no_grad():
        return model(torch.from_numpy(tokens_BT).long(), use_cache=False).logits.float().numpy()


def as_torch(model, params):
    """Our parameters, or gradients, as torch names and lays them out; written out by hand, not from the module's table."""
    out = {"model.embed_tokens.weight": params["embedding_VD"], "model.norm.weight": params["final_norm_D"]}
    if not model.tied_embeddings:
        out["lm_head.weight"] = params["unembedding_DV"].T
    blocks = params["blocks"]
    for layer in range(model.layers):
        own = {
            "input_layernorm.weight": blocks["attention_norm_LD"][layer],
            "post_attention_layernorm.weight": blocks["mlp_norm_LD"][layer],
            "self_attn.q_proj.weight": blocks["wq_LDNH"][layer].reshape(model.width, -1).T,
            "self_attn.k_proj.weight": blocks["wk_LDKH"][layer].reshape(model.width, -1).T,
            "self_attn.v_proj.weight": blocks["wv_LDKH"][layer].reshape(model.width, -1).T,
            "self_attn.o_proj.weight": blocks["wo_LNHD"][layer].reshape(-1, model.width).T,
            "mlp.gate_proj.weight": blocks["w_gate_LDF"][layer].T,
            "mlp.up_proj.weight": blocks["w_up_LDF"][layer].T,
            "mlp.down_proj.weight": blocks["w_down_LFD"][layer].T,
        }
        if model.qkv_bias:
            own["self_attn.q_proj.bias"] = blocks["bq_LNH"][layer].reshape(-1)
            own["self_attn.k_proj.bias"] = blocks["bk_LKH"][layer].reshape(-1)
            own["self_attn.v_proj.bias"] = blocks["bv_LKH"][layer].reshape(-1)
        if model.qk_norm:
            own["self_attn.q_norm.weight"] = blocks["q_norm_LH"][layer]
            own["self_attn.k_norm.weight"] = blocks["k_norm_LH"][layer]
        out |= {f"model.layers.{layer}.{name}": array for name, array in own.items()}
    return {name: np.asarray(array) for name, array in out.items()}


def tensors_in(directory):
    """Name -> (dtype, shape, bytes) of everything in the safetensors files of a directory."""
    found = {}
    for path in sorted(directory.glob("*.safetensors")):
        found |= {
            name: (str(array.dtype), array.shape, array.tobytes()) for name, array in safetensors.numpy.load_file(path).items()
        }
    return found


def leaves_equal(one, other):
    return jax.tree.all(jax.tree.map(lambda a, b: a.dtype == b.dtype and bool((np.asarray(a) == np.asarray(b)).all()), one, other))


def kl(logits, other):
    """Mean nats by position of the first distribution against the second."""
    log_p, log_q = (jax.nn.log_softmax(np.asarray(x, np.float32)) for x in (logits, other))
    return float(jnp.mean(jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)))


# The same function


@pytest.mark.parametrize("name", MODELS)
def test_logits(saved, name):
    model, params = read(saved(name))
    tokens_BT = tokens_for(model)
    ours, theirs = logits_of(model, params, tokens_BT), torch_logits(torch_model(name), tokens_BT)
    assert theirs.std() > 1
    np.testing.assert_allclose(ours, theirs, atol=1e-4, rtol=0)


def test_rotary_scaling_matters(saved):
    """Else the test above would say nothing of it."""
    model, params = read(saved("llama"))
    assert model.rope_scaling == (8.0, 1.0, 4.0, 32.0)
    plain = dataclasses.replace(model, rope_scaling=())
    tokens_BT = tokens_for(model)
    assert np.abs(logits_of(model, params, tokens_BT) - logits_of(plain, params, tokens_BT)).max() > 0.1


@pytest.mark.parametrize("name", MODELS)
def test_gradients(saved, name):
    model, params = read(saved(name))
    tokens_BT = tokens_for(model)
    theirs = torch_model(name)
    theirs.zero_grad()
    inputs = torch.from_numpy(tokens_BT).long()
    theirs(inputs, labels=inputs, use_cache=False).loss.backward()
    gradients = {key: parameter.grad.numpy() for key, parameter in theirs.named_parameters()}
    ours = as_torch(model, logits_and_gradients(model, params, tokens_BT)[1])
    assert ours.keys() == gradients.keys()
    for key, theirs in gradients.items():
        assert np.linalg.norm(theirs) > 0
        assert np.linalg.norm(ours[key] - theirs) < 1e-3 * np.linalg.norm(theirs), key


@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3"])
def test_greedy_continuations(saved, name):
    model, params = read(saved(name))
    prompt, steps = 40, 32
    ours, theirs = (np.zeros((BATCH, prompt + steps), np.int32) for _ in range(2))
    ours[:, :prompt] = theirs[:, :prompt] = tokens_for(model, prompt)
    for at in range(prompt, prompt + steps):
        ours[:, at] = logits_of(model, params, ours)[:, at - 1].argmax(-1)  # what is not written yet is not seen
        theirs[:, at] = torch_logits(torch_model(name), theirs[:, :at])[:, -1].argmax(-1)
    np.testing.assert_array_equal(ours, theirs)
    assert len(np.unique(ours[:, prompt:])) > 5


@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3"])
def test_bfloat16_is_near(saved, name, tmp_path):
    """Parameters and computation in bfloat16 on both sides: only roundings differ."""
    rounded(name).save_pretrained(tmp_path / "saved")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "saved", attn_implementation="eager")
    assert theirs.dtype == torch.bfloat16
    model, params = read(tmp_path / "saved", "bfloat16", compute_dtype="bfloat16")
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("bfloat16")}
    tokens_BT = tokens_for(model)
    exact = torch_logits(theirs, tokens_BT)
    ours = logits_of(model, params, tokens_BT)
    assert kl(exact, ours) < 1e-3
    # It is a measure: these distributions are far from even, and a model that is a little another one is far away.
    assert kl(exact, np.zeros_like(exact)) > 0.3
    blocks = params["blocks"]
    swapped = {**params, "blocks": {**blocks, "wk_LDKH": blocks["wv_LDKH"], "wv_LDKH": blocks["wk_LDKH"]}}
    assert kl(exact, logits_of(model, swapped, tokens_BT)) > 0.03


# Both ways


@pytest.mark.parametrize("name", ["llama", "llama tied", "llama odd", "qwen2", "qwen2 odd", "qwen3 tied"])
@pytest.mark.parametrize("like_it", [True, False])
def test_round_trip(saved, name, like_it, tmp_path):
    """The exported files have the bytes that were read, and transformers loads them as the same function."""
    model, params = read(saved(name))
    huggingface.write_params(tmp_path / "out", model, params, "float32", saved(name) if like_it else None)
    assert tensors_in(tmp_path / "out") == tensors_in(saved(name))
    assert huggingface.read_config(tmp_path / "out") == huggingface.read_config(saved(name))
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
    huggingface.write_params(tmp_path / "out", model, params, "float32", tmp_path / "from")
    assert template.read(tmp_path / "out") == {"default": "chat", "tool_use": "tools"}
    huggingface.write_params(tmp_path / "given", model, params, "float32", tmp_path / "from", {"default": "mine"})
    assert template.read(tmp_path / "given") == {"default": "mine"}


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
    """A bfloat16 model in several files, with the companions of a model."""
    directory = tmp_path_factory.mktemp("sharded") / "saved"
    rounded("qwen3").save_pretrained(directory, max_shard_size="15KB")
    (directory / "tokenizer.json").write_text("{}")
    (directory / "generation_config.json").write_text('{"temperature": 0.6}')
    return directory


def test_round_trip_of_bfloat16_in_several_files(sharded, monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface, "SHARD_BYTES", 20_000)
    model, params = read(sharded, "bfloat16")
    huggingface.write_params(tmp_path / "out", model, params, jnp.bfloat16, sharded)
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
    huggingface.write_params(tmp_path / "out", model, params, "float32", sharded)
    assert transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").dtype == torch.float32
    huggingface.write_params(tmp_path / "back", model, params, "bfloat16", None)
    assert tensors_in(tmp_path / "back") == tensors_in(sharded)


@pytest.mark.parametrize("sizes", [(2, 2, 2), (1, 8, 1), (8, 1, 1)])
def test_any_mesh_reads_and_writes_the_same(saved, sizes, tmp_path):
    one = read(saved("qwen2"))[1]
    mesh = mesh_of(*sizes)
    model, params = read(saved("qwen2"), mesh=mesh)
    assert leaves_equal(params, one)
    assert jax.tree.map(lambda leaf: leaf.sharding, params) == shardings_of(model, mesh)
    huggingface.write_params(tmp_path / "out", model, params, "float32", None)
    assert tensors_in(tmp_path / "out") == tensors_in(saved("qwen2"))


PROCESS = """
import sys
from pathlib import Path
import jax
jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
from msmjax.model import huggingface, transformer
from msmjax.model.transformer import ModelConfig
from msmjax.training import sharding
source, out = Path(sys.argv[3]), Path(sys.argv[4])
model = ModelConfig(**huggingface.read_config(source), **eval(sys.argv[5]))
mesh = sharding.make_mesh(sharding.MeshConfig(data=1, fsdp=2, tensor=2))
abstract = jax.eval_shape(lambda: transformer.init_params(model, jax.random.key(0)))
params = huggingface.read_params(source, model, sharding.tree_shardings(mesh, abstract), "bfloat16")
assert not params["embedding_VD"].is_fully_addressable
huggingface.write_params(out, model, params, "bfloat16", source)
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


# Memory


@pytest.fixture(scope="module")
def deep(tmp_path_factory):
    """A model whose stacked leaves are much larger than any tensor: 16 layers of 1.4 MB."""
    directory = tmp_path_factory.mktemp("deep") / "saved"
    config = transformers.LlamaConfig(**{**SIZES, "num_hidden_layers": 16, "hidden_size": 128, "intermediate_size": 768})
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(directory)
    return directory


LARGEST = 128 * 768 * 4  # bytes of the largest tensor of `deep`; its leaf has 16 times as many


def test_reading_holds_few_tensors_on_the_host(deep):
    """tracemalloc counts what numpy and Python allocate: the host's share, and not the devices' arrays.

    The tensor that is read, the one before it, which JAX lets go of a little later, and what Python has.
    """
    read(deep)  # compiles
    model = model_of(deep)
    shardings = shardings_of(model, mesh_of(1, 1, 1))
    tracemalloc.start()
    try:
        params = huggingface.read_params(deep, model, shardings, "float32")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert sum(leaf.nbytes for leaf in jax.tree.leaves(params)) > 50 * LARGEST
    assert LARGEST < peak < 3.5 * LARGEST


def test_reading_takes_each_device_its_slice(deep, monkeypatch):
    """No byte is read twice, though four devices hold a copy, and nothing larger than a device's share of a tensor at a time."""
    asked = []

    class Slice:
        def __init__(self, part):
            self.part, self.get_shape, self.get_dtype = part, part.get_shape, part.get_dtype

        def __getitem__(self, index):
            asked.append(self.part[index].nbytes)
            return self.part[index]

    opened = huggingface._open
    monkeypatch.setattr(
        huggingface, "_open", lambda *args: {name: (path, Slice(part)) for name, (path, part) in opened(*args).items()}
    )
    _, params = read(deep, mesh=mesh_of(4, 2, 1))
    assert sum(asked) == sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    assert max(asked) == LARGEST // 2


def test_writing_holds_one_tensor(deep, monkeypatch, tmp_path):
    """Beside the parameters there is never more than one tensor, and the one before it while it is freed."""
    model, params = read(deep)
    held = []
    write = huggingface._write_tensor
    before = sum(array.nbytes for array in jax.live_arrays())
    monkeypatch.setattr(
        huggingface,
        "_write_tensor",
        lambda file, array: (held.append(sum(one.nbytes for one in jax.live_arrays()) - before), write(file, array)),
    )
    huggingface.write_params(tmp_path / "out", model, params, "float32", None)
    assert len(held) == 16 * 9 + 3
    assert LARGEST <= max(held) <= 2 * LARGEST


# Configs


PUBLISHED = {  # the keys and figures of published models' config.json
    "llama": {
        "architectures": ["LlamaForCausalLM"], "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 128000,
        "eos_token_id": [128001, 128008, 128009], "hidden_act": "silu", "hidden_size": 4096, "initializer_range": 0.02,
        "intermediate_size": 14336, "max_position_embeddings": 131072, "mlp_bias": False, "model_type": "llama",
        "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8, "pretraining_tp": 1, "rms_norm_eps": 1e-05,
        "rope_scaling": {
            "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
            "rope_type": "llama3",
        },
        "rope_theta": 500000.0, "tie_word_embeddings": False, "torch_dtype": "bfloat16", "transformers_version": "4.42.3",
        "use_cache": True, "vocab_size": 128256,
    },
    "qwen2": {
        "architectures": ["Qwen2ForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 151643, "eos_token_id": 151645,
        "hidden_act": "silu", "hidden_size": 5120, "initializer_range": 0.02, "intermediate_size": 13824,
        "max_position_embeddings": 32768, "max_window_layers": 70, "model_type": "qwen2", "num_attention_heads": 40,
        "num_hidden_layers": 48, "num_key_value_heads": 8, "rms_norm_eps": 1e-06, "rope_theta": 1000000.0, "sliding_window": 131072,
        "tie_word_embeddings": False, "torch_dtype": "bfloat16", "transformers_version": "4.43.1", "use_cache": True,
        "use_sliding_window": False, "vocab_size": 152064,
    },
    "qwen3": {
        "architectures": ["Qwen3ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 151643,
        "eos_token_id": 151645, "head_dim": 128, "hidden_act": "silu", "hidden_size": 1024, "initializer_range": 0.02,
        "intermediate_size": 3072, "max_position_embeddings": 40960, "max_window_layers": 28, "model_type": "qwen3",
        "num_attention_heads": 16, "num_hidden_layers": 28, "num_key_value_heads": 8, "rms_norm_eps": 1e-06, "rope_scaling": None,
        "rope_theta": 1000000, "sliding_window": None, "tie_word_embeddings": True, "torch_dtype": "bfloat16",
        "transformers_version": "4.51.0", "use_cache": True, "use_sliding_window": False, "vocab_size": 151936,
    },
}  # fmt: skip


def config_in(directory, kind, **changes):
    """A directory with a published config.json; a change to `...` leaves the key out."""
    said = {key: value for key, value in {**PUBLISHED[kind], **changes}.items() if value is not ...}
    (directory / "config.json").write_text(json.dumps(said))
    return directory


def test_published_configs(tmp_path):
    assert huggingface.read_config(config_in(tmp_path, "llama")) == {
        "vocab": 128256, "layers": 32, "width": 4096, "mlp": 14336, "heads": 32, "kv_heads": 8, "head_dim": 128,
        "rope_theta": 500000.0, "rope_scaling": (8.0, 1.0, 4.0, 8192.0), "norm_epsilon": 1e-5, "qkv_bias": False,
        "qk_norm": False, "tied_embeddings": False,
    }  # fmt: skip
    assert huggingface.read_config(config_in(tmp_path, "qwen2")) == {
        "vocab": 152064, "layers": 48, "width": 5120, "mlp": 13824, "heads": 40, "kv_heads": 8, "head_dim": 128,
        "rope_theta": 1e6, "rope_scaling": (), "norm_epsilon": 1e-6, "qkv_bias": True, "qk_norm": False,
        "tied_embeddings": False,
    }  # fmt: skip
    assert huggingface.read_config(config_in(tmp_path, "qwen3")) == {
        "vocab": 151936, "layers": 28, "width": 1024, "mlp": 3072, "heads": 16, "kv_heads": 8, "head_dim": 128,
        "rope_theta": 1e6, "rope_scaling": (), "norm_epsilon": 1e-6, "qkv_bias": False, "qk_norm": True, "tied_embeddings": True,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("llama", {}),
        ("llama", {"rope_scaling": None, "rope_theta": ..., "head_dim": None}),
        ("llama", {"num_key_value_heads": ..., "tie_word_embeddings": ...}),
        ("llama", {"rope_scaling": {**PUBLISHED["llama"]["rope_scaling"], "rope_theta": 12345.0}, "rope_theta": ...}),
        ("llama", {"rope_scaling": ..., "rope_theta": ..., "rope_parameters": {"rope_type": "default", "rope_theta": 77.0}}),
        ("llama", {"rope_scaling": {"type": "default"}, "rope_theta": 300}),
        ("qwen2", {"head_dim": 64, "layer_types": ["full_attention"] * 48, "tie_word_embeddings": ...}),
        ("qwen3", {"tie_word_embeddings": ..., "rope_theta": ..., "partial_rotary_factor": 1.0}),
    ],
)
def test_configs_say_what_transformers_understands(kind, changes, tmp_path):
    """Old keys, new keys and what is left out, against transformers' own reading of the same file."""
    ours = huggingface.read_config(config_in(tmp_path, kind, **changes))
    theirs = transformers.AutoConfig.from_pretrained(tmp_path)
    with torch.device("meta"):  # shapes alone
        model = transformers.AutoModelForCausalLM.from_config(theirs)
    attention = model.model.layers[0].self_attn
    rope = theirs.rope_parameters
    assert ours["tied_embeddings"] == (model.lm_head.weight is model.model.embed_tokens.weight)
    assert ours["head_dim"] == attention.head_dim
    assert ours["kv_heads"] * ours["head_dim"] == attention.k_proj.out_features
    assert ours["qkv_bias"] == (attention.q_proj.bias is not None)
    assert ours["qk_norm"] == hasattr(attention, "q_norm")
    assert ours["rope_theta"] == rope["rope_theta"]
    assert ours["rope_scaling"] == (tuple(rope[key] for key in huggingface.LLAMA3_ROPE) if rope["rope_type"] == "llama3" else ())


ROPE = PUBLISHED["llama"]["rope_scaling"]


@pytest.mark.parametrize(
    ("kind", "changes", "said"),
    [
        ("llama", {"model_type": "mistral"}, "model_type='mistral': unknown; must be one of llama, qwen2, qwen3"),
        ("llama", {"model_type": ...}, "model_type=None: unknown"),
        ("llama", {"model_type": ["llama"]}, "model_type=['llama']: unknown"),
        (
            "llama",
            {"architectures": ["LlamaForSequenceClassification"]},
            "architectures=['LlamaForSequenceClassification']: must be",
        ),
        ("llama", {"hidden_act": "gelu"}, 'hidden_act="gelu": not implemented, must be "silu"'),
        ("llama", {"attention_bias": True}, "attention_bias=true: not implemented, must be false"),
        ("qwen3", {"attention_bias": True}, "attention_bias=true: not implemented, must be false"),
        ("llama", {"mlp_bias": True}, "mlp_bias=true: not implemented, must be false"),
        ("qwen2", {"use_sliding_window": True}, "use_sliding_window=true: not implemented, must be false"),
        ("qwen2", {"use_mrope": True}, "use_mrope=true: not implemented"),
        ("llama", {"sliding_window": 4096}, "sliding_window=4096: not implemented"),
        ("qwen3", {"layer_types": ["full_attention"] * 27 + ["sliding_attention"]}, "layer_types=["),
        ("qwen3", {"layer_types": ["full_attention"] * 27}, "must be 28 times 'full_attention'"),
        ("llama", {"quantization_config": {"quant_method": "awq"}}, 'quantization_config={"quant_method": "awq"}: not implemented'),
        ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5: not implemented, must be 1"),
        ("llama", {"is_encoder_decoder": True}, "is_encoder_decoder=true: not implemented"),
        ("llama", {"logit_scale": 0.1}, "logit_scale=0.1: unknown, so it may change the function"),
        ("llama", {"auto_map": {"AutoModel": "own.Model"}}, 'auto_map={"AutoModel": "own.Model"}: unknown'),
        ("llama", {"rope_scaling": {"type": "linear", "factor": 2.0}}, 'rope_scaling.type="linear": must be default or llama3'),
        (
            "qwen2",
            {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}},
            'rope_scaling.rope_type="yarn": must be default or llama3',
        ),
        ("llama", {"rope_scaling": {**ROPE, "type": "default"}}, "must be default or llama3, and only one"),
        ("llama", {"rope_scaling": {"factor": 8.0}}, "rope_scaling.factor=8.0: unknown"),
        ("llama", {"rope_scaling": {**ROPE, "attention_factor": 1.5}}, "rope_scaling.attention_factor=1.5: unknown"),
        (
            "llama",
            {"rope_scaling": {**ROPE, "partial_rotary_factor": 0.5}},
            "rope_scaling.partial_rotary_factor=0.5: not implemented",
        ),
        ("llama", {"rope_scaling": {**ROPE, "low_freq_factor": None}}, "low_freq_factor is missing"),
        ("llama", {"rope_scaling": {**ROPE, "factor": "8"}}, 'factor="8": must be a number above 0'),
        ("llama", {"rope_scaling": "llama3"}, 'rope_scaling="llama3": must be an object'),
        ("llama", {"rope_scaling": {**ROPE, "rope_theta": 1e4}}, "rope_theta=500000, but rope_scaling.rope_theta=10000"),
        ("llama", {"rope_parameters": {"rope_type": "default"}}, "rope_scaling and rope_parameters differ"),
        (
            "llama",
            {"rope_scaling": ..., "rope_parameters": {"full_attention": {"rope_type": "default"}}},
            "rope_parameters.full_attention=",
        ),
        ("llama", {"original_max_position_embeddings": 8192}, "original_max_position_embeddings=8192: unknown"),
        ("llama", {"vocab_size": ...}, "vocab_size is missing"),
        ("llama", {"num_hidden_layers": 0}, "num_hidden_layers=0: must be a whole number above 0"),
        ("llama", {"intermediate_size": 1.5}, "intermediate_size=1.5: must be a whole number above 0"),
        ("llama", {"hidden_size": True}, "hidden_size=true: must be a whole number above 0"),
        ("llama", {"rms_norm_eps": "1e-5"}, 'rms_norm_eps="1e-5": must be a number above 0'),
        ("llama", {"rope_theta": -1}, "rope_theta=-1: must be a number above 0"),
        ("llama", {"tie_word_embeddings": "no"}, "tie_word_embeddings='no': must be true or false"),
        (
            "llama",
            {"num_attention_heads": 24},
            "head_dim is missing, and hidden_size=4096 does not divide by num_attention_heads=24",
        ),
        ("qwen2", {"num_key_value_heads": ...}, "num_key_value_heads is missing"),
        ("qwen3", {"head_dim": ...}, "head_dim is missing"),
    ],
)
def test_config_refusals(kind, changes, said, tmp_path):
    with pytest.raises(BadInput) as refused:
        huggingface.read_config(config_in(tmp_path, kind, **changes))
    assert str(refused.value).startswith(f"{tmp_path / 'config.json'}: ")
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [(None, "cannot read (No such file or directory)"), ("{", "not JSON"), ("[]", "a list, not an object"), ("\xff", "not JSON")],
)
def test_unreadable_configs(text, said, tmp_path):
    if text is not None:
        (tmp_path / "config.json").write_bytes(text.encode("latin1"))
    with pytest.raises(BadInput, match=r"config\.json: ") as refused:
        huggingface.read_config(tmp_path)
    assert said in str(refused.value)


DIFFERENT = {
    "vocab": 97, "layers": 3, "width": 64, "mlp": 50, "heads": 8, "kv_heads": 4, "head_dim": 6, "rope_theta": 2e4,
    "rope_scaling": (8.0, 1.0, 4.0, 64.0), "norm_epsilon": 1e-6, "qkv_bias": True, "qk_norm": True, "tied_embeddings": True,
}  # fmt: skip


@pytest.mark.parametrize("field", DIFFERENT)
def test_another_model_than_the_experiment(saved, field):
    model = model_of(saved("llama"))
    huggingface.check_config(saved("llama"), model)
    other = dataclasses.replace(model, **{field: DIFFERENT[field]})
    for check in (
        lambda: huggingface.check_config(saved("llama"), other),
        lambda: huggingface.read_params(saved("llama"), other, shardings_of(other, mesh_of(1, 1, 1)), "float32"),
    ):
        with pytest.raises(
            BadInput, match=rf"config.json: {huggingface.KEYS[field]} makes model.{field}=.*, but the experiment says"
        ):
            check()


def test_every_field_of_a_model_is_decided_or_known(saved):
    decided = set(huggingface.read_config(saved("llama")))
    assert decided == set(huggingface.KEYS) == set(DIFFERENT)
    assert decided | set(OTHER) == {field.name for field in dataclasses.fields(ModelConfig)}


# Files


def change_tensors(directory, change):
    """Rewrites model.safetensors with its tensors (a dict of arrays) changed."""
    tensors = safetensors.numpy.load_file(directory / "model.safetensors")
    change(tensors)
    safetensors.numpy.save_file(tensors, directory / "model.safetensors")


def cut(path, bytes_left):
    path.write_bytes(path.read_bytes()[:bytes_left])


def change_index(directory, change):
    index = json.loads((directory / huggingface.INDEX).read_text())
    change(index)
    (directory / huggingface.INDEX).write_text(json.dumps(index))


Q = "model.layers.1.self_attn.q_proj.weight"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda d: change_tensors(d, lambda t: t.pop(Q)), f": {Q} is missing; the files are cut short"),
        (
            lambda d: change_tensors(d, lambda t: [t.pop(key) for key in list(t) if ".layers.1." in key]),
            "model.layers.1.input_layernorm.weight is missing and 8 more are wrong",
        ),
        (
            lambda d: change_tensors(d, lambda t: t.update({"model.layers.0.self_attn.o_proj.bias": np.zeros(32, np.float32)})),
            "model.safetensors: model.layers.0.self_attn.o_proj.bias is unknown",
        ),
        (
            lambda d: change_tensors(d, lambda t: t.update({Q: t[Q][:16].copy()})),
            f"model.safetensors: {Q} is [16, 32] instead of [32, 32]",
        ),
        (
            lambda d: change_tensors(d, lambda t: t.update({"lm_head.weight": t["lm_head.weight"][:90].copy()})),
            "lm_head.weight is [90, 32] instead of [96, 32]",
        ),
        (
            lambda d: change_tensors(d, lambda t: t.update({Q: t[Q].astype(np.int8)})),
            f"{Q} has dtype I8, not one of F32, BF16, F16",
        ),
        (
            lambda d: change_tensors(d, lambda t: t.update({Q: t[Q].astype(ml_dtypes.float8_e4m3fn)})),
            f"{Q} has dtype F8_E4M3, not one of",
        ),
        (lambda d: cut(d / "model.safetensors", 50_000), "model.safetensors: cut off, or no safetensors file ("),
        (lambda d: cut(d / "model.safetensors", 100), "model.safetensors: cut off, or no safetensors file ("),
        (lambda d: cut(d / "model.safetensors", 0), "model.safetensors: cut off, or no safetensors file ("),
        (
            lambda d: (d / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n"),
            "model.safetensors: cut off, or no safetensors file (",
        ),
        (lambda d: (d / "model.safetensors").unlink(), "neither model.safetensors nor model.safetensors.index.json is there"),
        (lambda d: (d / "config.json").unlink(), "config.json: cannot read (No such file or directory)"),
    ],
)
def test_damaged_files(saved, change, said, tmp_path):
    directory = tmp_path / "copy"
    shutil.copytree(saved("llama"), directory)
    model = model_of(directory)
    change(directory)
    with pytest.raises(BadInput) as refused:
        huggingface.read_params(directory, model, shardings_of(model, mesh_of(1, 1, 1)), "float32")
    assert str(refused.value).startswith(str(directory))
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda d, shard: shard.unlink(), "{shard}: no such file, though model.safetensors.index.json names it"),
        (lambda d, shard: cut(shard, 3000), "{shard}: cut off, or no safetensors file ("),
        (lambda d, shard: shutil.copy(d / "model-00001-of-00004.safetensors", shard), "{shard}: "),
        (lambda d, shard: (d / huggingface.INDEX).write_text("{"), "{index}: not JSON"),
        (lambda d, shard: change_index(d, lambda index: index.pop("weight_map")), "{index}: no weight_map from tensors to files"),
        (
            lambda d, shard: change_index(d, lambda index: index["weight_map"].update(more=shard.name)),
            "{shard}: no tensor more, though model.safetensors.index.json says so",
        ),
        (
            lambda d, shard: shutil.copy(shard, d / huggingface.SINGLE),
            "{directory}: has model.safetensors and model.safetensors.index.json",
        ),
    ],
)
def test_damaged_sharded_files(sharded, change, said, tmp_path):
    directory = tmp_path / "copy"
    shutil.copytree(sharded, directory)
    model = model_of(directory)
    shard = sorted(directory.glob("*.safetensors"))[1]
    change(directory, shard)
    with pytest.raises(BadInput) as refused:
        huggingface.read_params(directory, model, shardings_of(model, mesh_of(1, 1, 1)), "float32")
    wanted = said.format(shard=shard, index=directory / huggingface.INDEX, directory=directory)
    assert str(refused.value).startswith(wanted)


def test_what_is_left_over_is_ignored(saved, tmp_path):
    """Buffers of the rotary positions, and a tied model's output matrix where it is the embedding."""
    directory = tmp_path / "copy"
    shutil.copytree(saved("llama tied"), directory)
    left_over = {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(8, np.float32)}
    change_tensors(directory, lambda t: t.update(left_over, **{"lm_head.weight": t["model.embed_tokens.weight"].copy()}))
    assert leaves_equal(read(directory)[1], read(saved("llama tied"))[1])


@pytest.mark.parametrize("other", [lambda embedding: embedding + 1e-3, lambda embedding: embedding[:90].copy()])
def test_a_tied_model_with_an_output_matrix_of_its_own(saved, other, tmp_path):
    directory = tmp_path / "copy"
    shutil.copytree(saved("llama tied"), directory)
    change_tensors(directory, lambda t: t.update({"lm_head.weight": other(t["model.embed_tokens.weight"])}))
    with pytest.raises(BadInput, match=r"lm_head.weight is not model.embed_tokens.weight, though tie_word_embeddings is true"):
        read(directory)


def test_without_safetensors(saved, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(BadInput, match=r"safetensors: not installed; .*pip install -e '\.\[huggingface\]'"):
        read(saved("llama"))


# Exports


def test_a_killed_export_leaves_nothing(saved, monkeypatch, tmp_path):
    """What stops it, at whatever tensor, leaves no directory; the next one goes through."""
    model, params = read(saved("qwen2"))
    write, written = huggingface._write_tensor, []

    def stopped(file, array):
        written.append(array)
        if len(written) == 7:
            raise artifact.Preempted
        write(file, array)

    with monkeypatch.context() as patch:
        patch.setattr(huggingface, "_write_tensor", stopped)
        with pytest.raises(artifact.Preempted):
            huggingface.write_params(tmp_path / "out", model, params, "float32", None)
    assert not list(tmp_path.iterdir())
    # SIGKILL leaves what it had, beside: it is removed by the next export to the same place.
    (tmp_path / "incomplete.out" / "building").mkdir(parents=True)
    (tmp_path / "incomplete.out" / "building" / "model-00007-of-00009.safetensors").write_text("half")
    huggingface.write_params(tmp_path / "out", model, params, "float32", None)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["config.json", "model.safetensors"]


def test_export_refusals(saved, tmp_path):
    model, params = read(saved("qwen2"))
    export = functools.partial(huggingface.write_params, model=model, params=params, dtype="float32", config_from=None)
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

    monkeypatch.setattr(huggingface, "_write_tensor", full)
    with pytest.raises(BadInput, match="out: cannot write"):
        huggingface.write_params(tmp_path / "out", model, params, "float32", None)
    assert not list(tmp_path.iterdir())


def test_parameters_of_our_own_become_a_model_of_transformers(tmp_path):
    """Made here and never imported: a Qwen3 with scaled rotary positions, as parameters that are on no mesh."""
    fields = {
        "vocab": 50, "layers": 2, "width": 24, "mlp": 40, "heads": 4, "kv_heads": 2, "head_dim": 8, "rope_theta": 1e4,
        "rope_scaling": (8.0, 1.0, 4.0, 32.0), "norm_epsilon": 1e-6, "qkv_bias": False, "qk_norm": True, "tied_embeddings": True,
    }  # fmt: skip
    model = ModelConfig(**fields, **OTHER)
    params = random_params(model)
    huggingface.write_params(tmp_path / "out", model, params, "float32", None)
    assert huggingface.read_config(tmp_path / "out") == fields
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", attn_implementation="eager")
    assert isinstance(theirs, transformers.Qwen3ForCausalLM)
    assert theirs.config.eos_token_id is None
    tokens_BT = tokens_for(model)
    np.testing.assert_allclose(logits_of(model, params, tokens_BT), torch_logits(theirs, tokens_BT), atol=1e-4, rtol=0)
