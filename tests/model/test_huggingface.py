"""Hugging Face directories that we read: what transformers wrote is the same function here, and damaged files are refused."""

import dataclasses
import json
import shutil
import sys
import tracemalloc

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import torch
import transformers

from msmjax.artifact import BadInput
from msmjax.model import huggingface
from tests.models import (
    BATCH,
    LARGEST,
    MODELS,
    leaves_equal,
    logits_and_gradients,
    logits_of,
    mesh_of,
    model_of,
    read,
    rounded,
    shardings_of,
    tokens_for,
    torch_logits,
    torch_model,
)


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


def kl(logits, other):
    """Mean nats by position of the first distribution against the second."""
    log_p, log_q = (jax.nn.log_softmax(np.asarray(x, np.float32)) for x in (logits, other))
    return float(jnp.mean(jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)))


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
