"""LoRA adapters against PEFT itself, both ways; what is measured of them against the products formed; and what they cost."""

import dataclasses
import json
import math
import re
import sys

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from msmjax.artifact import BadInput
from msmjax.model import lora, transformer
from msmjax.model.shapes import SHAPES
from msmjax.model.transformer import PROJECTIONS
from msmjax.training import sharding

FAMILIES = {
    "Llama": {"qkv_bias": False, "qk_norm": False},
    "Qwen2": {"qkv_bias": True, "qk_norm": False},
    "Qwen3": {"qkv_bias": False, "qk_norm": True},
}
CHOSEN = {
    "embedding_init": 0.02, "matrix_init": 1.0, "lora_rank": 64, "lora_alpha": 128.0, "compute_dtype": "bfloat16",
    "scan_layers": True, "remat": "full", "attention": "xla",
}  # fmt: skip


@pytest.fixture(scope="module")
def tuned(model):
    """The model of the other tests, with an adapter whose scale is not 1 and whose rank is no other size."""
    return dataclasses.replace(model, lora_rank=6, lora_alpha=9.0)


@pytest.fixture
def written(tmp_path, tuned):
    """A directory with a random adapter of `tuned`, to break."""
    pytest.importorskip("safetensors")
    lora.write_peft(tmp_path / "adapter", tuned, random_adapter(tuned), "base")
    return tmp_path / "adapter"


def random_adapter(model, seed=0):
    """Both halves of every pair random: as initialised, the products are zero."""
    return random_like(lambda: transformer.init_adapter(model, jax.random.key(0)), seed)


def random_params(model):
    return random_like(lambda: transformer.init_params(model, jax.random.key(0)), seed=7)


def random_like(init, seed):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: rng.normal(0, 0.2, leaf.shape).astype(np.float32), jax.eval_shape(init))


def assert_same_bits(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert a.dtype == b.dtype == np.float32
        np.testing.assert_array_equal(np.asarray(a).view(np.uint32), np.asarray(b).view(np.uint32))


def changes(model, adapter):
    """Projection -> (lora_alpha / lora_rank) A B, formed, in float64, [L, ...]."""
    formed = {}
    for name, (summed, out) in PROJECTIONS.items():
        a, b = (np.asarray(adapter["blocks"][f"{name}_{rest}"], np.float64) for rest in (f"a_L{summed}R", f"b_LR{out}"))
        formed[name] = model.lora_alpha / model.lora_rank * np.einsum(f"L{summed}R,LR{out}->L{summed}{out}", a, b)
    return formed


# ---- against PEFT ----


@pytest.fixture(scope="module", params=FAMILIES)
def peer(request, tuned):
    """A random torch model of a family, our config of it, and our parameters with its weights."""
    pytest.importorskip("peft")
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    torch.manual_seed(0)
    model = dataclasses.replace(tuned, **FAMILIES[request.param], layers=2)
    config = getattr(transformers, f"{request.param}Config")(
        vocab_size=model.vocab, hidden_size=model.width, intermediate_size=model.mlp, num_hidden_layers=model.layers,
        num_attention_heads=model.heads, num_key_value_heads=model.kv_heads, head_dim=model.head_dim,
        rms_norm_eps=model.norm_epsilon, rope_parameters={"rope_type": "default", "rope_theta": model.rope_theta},
        tie_word_embeddings=False, attn_implementation="eager",
    )  # fmt: skip
    torch_model = getattr(transformers, f"{request.param}ForCausalLM")(config).eval()
    with torch.no_grad():
        for parameter in torch_model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.2 + (1 if parameter.ndim == 1 else 0))
    return torch_model, model, params_of(torch_model, model)


def params_of(torch_model, model):
    """The weights of a torch model, as our parameters."""
    state = {key: value.detach().numpy() for key, value in torch_model.state_dict().items()}
    theirs = {
        **lora.MODULES, "bq": "self_attn.q_proj", "bk": "self_attn.k_proj", "bv": "self_attn.v_proj",
        "q_norm": "self_attn.q_norm", "k_norm": "self_attn.k_norm",
        "attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm",
    }  # fmt: skip
    shapes = jax.eval_shape(lambda: transformer.init_params(model, jax.random.key(0)))
    blocks = {}
    for leaf, shape in shapes["blocks"].items():
        name = leaf.rpartition("_L")[0]
        ending = "bias" if name in ("bq", "bk", "bv") else "weight"
        layers = [state[f"model.layers.{layer}.{theirs[name]}.{ending}"].T for layer in range(model.layers)]
        blocks[leaf] = np.stack(layers).reshape(shape.shape)
    return {
        "embedding_VD": state["model.embed_tokens.weight"], "blocks": blocks,
        "final_norm_D": state["model.norm.weight"], "unembedding_DV": state["lm_head.weight"].T,
    }  # fmt: skip


def with_peft(torch_model, model):
    """The torch model with a random adapter of PEFT's own; a copy, for PEFT changes what it is given."""
    import copy

    import peft
    import torch

    config = peft.LoraConfig(
        r=model.lora_rank, lora_alpha=int(model.lora_alpha), target_modules=list(lora.TARGETS), task_type="CAUSAL_LM"
    )
    adapted = peft.get_peft_model(copy.deepcopy(torch_model), config).eval()
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn_like(parameter) * 0.2)
    return adapted


TOKENS = np.random.default_rng(1).integers(0, 96, (2, 12))


def our_logits(model, params):
    tokens = jnp.asarray(TOKENS, jnp.int32)
    return np.asarray(transformer.unembed(model, params, transformer.forward(model, params, tokens, jnp.ones_like(tokens))))


def their_logits(torch_model):
    import torch

    with torch.no_grad():
        return torch_model(torch.from_numpy(TOKENS)).logits.numpy()


def assert_logits_close(one, other):
    np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4 * np.abs(other).max())


def test_an_adapter_of_peft_is_read(peer, tmp_path):
    """And with it the config as PEFT saves it, all defaults."""
    torch_model, model, params = peer
    adapted = with_peft(torch_model, model)
    adapted.save_pretrained(tmp_path)
    assert len(json.loads((tmp_path / lora.CONFIG).read_text())) > 30
    adapter = lora.read_peft(tmp_path, model)
    theirs = their_logits(adapted)
    assert_logits_close(our_logits(model, transformer.with_adapter(params, adapter)), theirs)
    assert np.abs(theirs - their_logits(torch_model)).max() > 0.1 * np.abs(theirs).max()


def test_peft_reads_ours(peer, tmp_path):
    """Also one that was continued: read, changed, and written again."""
    import copy

    import peft

    torch_model, model, params = peer
    adapter = random_adapter(model)
    for attempt in ("first", "continued"):
        lora.write_peft(tmp_path / attempt, model, adapter, "some/base")
        adapted = peft.PeftModel.from_pretrained(copy.deepcopy(torch_model), tmp_path / attempt).eval()
        assert adapted.peft_config["default"].base_model_name_or_path == "some/base"
        assert_logits_close(our_logits(model, transformer.with_adapter(params, adapter)), their_logits(adapted))
        adapted.save_pretrained(tmp_path / f"{attempt}_theirs", save_embedding_layers=False)  # else it looks for the base online
        assert_same_bits(lora.read_peft(tmp_path / f"{attempt}_theirs", model), adapter)
        adapter = jax.tree.map(lambda leaf: leaf + np.float32(0.1), lora.read_peft(tmp_path / attempt, model))


def test_merged_as_peft_merges(peer, tmp_path):
    torch_model, model, params = peer
    adapted = with_peft(torch_model, model)
    adapted.save_pretrained(tmp_path)
    merged = lora.merge(model, params, lora.read_peft(tmp_path, model))
    theirs = params_of(adapted.merge_and_unload(), model)
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-6), merged, theirs)
    changed = [leaf for leaf in params["blocks"] if (np.asarray(merged["blocks"][leaf]) != params["blocks"][leaf]).any()]
    assert {leaf.rpartition("_L")[0] for leaf in changed} == set(PROJECTIONS)


# ---- files ----


def test_a_round_trip_keeps_every_bit(tmp_path, tuned):
    pytest.importorskip("safetensors")
    adapter = random_adapter(tuned)
    adapter["blocks"]["wq_a_LDR"][0, 0, :4] = (np.nan, -0.0, 1e-42, np.inf)
    lora.write_peft(tmp_path / "a" / "b", tuned, jax.tree.map(jnp.asarray, adapter), "base")
    assert_same_bits(lora.read_peft(tmp_path / "a" / "b", tuned), adapter)
    assert {path.name for path in (tmp_path / "a").rglob("*")} == {"b", lora.CONFIG, lora.WEIGHTS}


def test_nothing_is_written_over(written, tuned):
    before = (written / lora.WEIGHTS).read_bytes()
    for directory, words in (
        (written, "exists already"),
        (written / lora.CONFIG, "exists already"),
        (written / lora.CONFIG / "a", "cannot write"),
    ):
        with pytest.raises(BadInput, match=words):
            lora.write_peft(directory, tuned, random_adapter(tuned, seed=1), "base")
    assert (written / lora.WEIGHTS).read_bytes() == before


def test_an_interrupted_write_leaves_nothing(tmp_path, tuned, monkeypatch):
    pytest.importorskip("safetensors")

    def interrupt(path, value):
        raise KeyboardInterrupt

    monkeypatch.setattr(lora.artifact, "write_json", interrupt)
    with pytest.raises(KeyboardInterrupt):
        lora.write_peft(tmp_path / "adapter", tuned, random_adapter(tuned), "base")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16])
def test_short_floats_are_read_as_float32(written, tuned, dtype):
    change_tensors(written, lambda tensors: {key: array.astype(dtype) for key, array in tensors.items()})
    expected = jax.tree.map(lambda leaf: leaf.astype(dtype).astype(np.float32), random_adapter(tuned))
    assert_same_bits(lora.read_peft(written, tuned), expected)


def change_tensors(directory, change):
    from safetensors.numpy import load_file, save_file

    tensors = change(load_file(directory / lora.WEIGHTS))
    save_file({key: np.ascontiguousarray(array) for key, array in tensors.items()}, directory / lora.WEIGHTS)


def change_config(directory, **fields):
    path = directory / lora.CONFIG
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("r", 8, ["r=8", "model.lora_rank=6"]),
        ("lora_alpha", 12, ["lora_alpha=12", "model.lora_alpha=9.0"]),
        ("lora_alpha", None, ["lora_alpha=None", "model.lora_alpha=9.0"]),
        ("peft_type", "LOHA", ["peft_type='LOHA'", "only LoRA"]),
        ("target_modules", [*lora.TARGETS[:3], *lora.TARGETS[4:]], ["target_modules", "missing: ['o_proj']", "unknown: []"]),
        ("target_modules", [*lora.TARGETS, "lm_head"], ["target_modules", "missing: []", "unknown: ['lm_head']"]),
        ("target_modules", "all-linear", ["target_modules='all-linear'"]),
        ("init_lora_weights", "pissa_niter_4", ["init_lora_weights='pissa_niter_4'", "changed the base"]),
        ("use_rslora", True, ["use_rslora=True"]),
        ("use_dora", True, ["use_dora=True"]),
        ("fan_in_fan_out", True, ["fan_in_fan_out=True"]),
        ("bias", "all", ["bias='all'"]),
        ("modules_to_save", ["lm_head"], ["modules_to_save=['lm_head']"]),
        ("rank_pattern", {"q_proj": 2}, ["rank_pattern={'q_proj': 2}"]),
        ("alpha_pattern", {"q_proj": 2}, ["alpha_pattern={'q_proj': 2}"]),
        ("layers_to_transform", [0], ["layers_to_transform=[0]"]),
        ("lora_bias", True, ["lora_bias=True"]),
        ("something_of_a_later_peft", 0.5, ["something_of_a_later_peft=0.5"]),
    ],
)
def test_a_config_of_another_function_is_refused(written, tuned, field, value, words):
    change_config(written, **{field: value})
    assert_refused(written, tuned, [str(written / lora.CONFIG), *words])


def assert_refused(directory, model, words):
    with pytest.raises(BadInput) as raised:
        lora.read_peft(directory, model)
    said = str(raised.value)
    assert "\n" not in said
    assert not [word for word in words if word not in said], said


LAST = "base_model.model.model.layers.2.mlp.down_proj.lora_B.weight"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda x: {key: x[key] for key in x if key != LAST}, [f"{LAST} is missing"]),
        (lambda x: {**x, "base_model.model.lm_head.lora_A.weight": x[LAST]}, ["base_model.model.lm_head.lora_A.weight is unknown"]),
        (lambda x: {key.replace("_A.", "_A.default."): x[key] for key in x}, ["q_proj.lora_A.weight is missing and 41 more"]),
        (lambda x: {**x, LAST: x[LAST].T}, [f"{LAST} is [6, 32] instead of [32, 6]"]),
        (lambda x: {**x, LAST: x[LAST][..., None]}, [f"{LAST} is [32, 6, 1] instead of [32, 6]"]),
        (lambda x: {**x, LAST: x[LAST].astype(np.float64)}, [f"{LAST} has dtype F64"]),
        (lambda x: {}, ["q_proj.lora_A.weight is missing and 41 more"]),
    ],
)
def test_wrong_tensors_are_refused(written, tuned, change, words):
    change_tensors(written, change)
    assert_refused(written, tuned, [str(written / lora.WEIGHTS), *words])


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"width": 40}, ["layers.0.self_attn.q_proj.lora_A.weight is [6, 32] instead of [6, 40]", "width 32 instead of 40"]),
        ({"mlp": 56, "kv_heads": 4}, ["mlp 48 instead of 56", "kv_heads x head_dim 16 instead of 32"]),
        ({"layers": 4}, ["layers.3.self_attn.q_proj.lora_A.weight is missing", "layers 3 instead of 4"]),
        ({"layers": 2}, ["layers.2", "is unknown", "layers 3 instead of 2"]),
    ],
)
def test_an_adapter_of_another_base_is_refused(written, tuned, other, words):
    """And the sizes that differ are named, and no others."""
    assert_refused(written, dataclasses.replace(tuned, **other), ["made for another base", *words])
    with pytest.raises(BadInput) as raised:
        lora.read_peft(written, dataclasses.replace(tuned, **other))
    differ = str(raised.value).partition("made for another base: ")[2].partition(";")[0]
    assert len(differ.split(", ")) == len(other), differ


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), ["cut off"]),
        (lambda path: path.write_bytes(path.read_bytes()[:1000]), ["cut off"]),
        (lambda path: path.write_bytes(b""), ["cut off"]),
        (lambda path: path.unlink(), ["no such file"]),
    ],
)
def test_a_damaged_weights_file_is_refused(written, tuned, damage, words):
    damage(written / lora.WEIGHTS)
    assert_refused(written, tuned, [str(written / lora.WEIGHTS), *words])


@pytest.mark.parametrize(("text", "words"), [("{", ["not JSON"]), ("[]", ["peft_type"]), ("{}", ["peft_type=None"])])
def test_a_broken_config_is_refused(written, tuned, text, words):
    (written / lora.CONFIG).write_text(text)
    assert_refused(written, tuned, [str(written / lora.CONFIG), *words])


def test_what_is_no_adapter_is_refused(tmp_path, tuned):
    pytest.importorskip("safetensors")
    for directory in (tmp_path, tmp_path / "nowhere"):
        assert_refused(directory, tuned, [str(directory / lora.CONFIG), "cannot read", "save_pretrained"])


def test_safetensors_is_named_where_it_is_missing(tmp_path, tuned, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    monkeypatch.setitem(sys.modules, "safetensors.numpy", None)
    for call in (lambda: lora.read_peft(tmp_path, tuned), lambda: lora.write_peft(tmp_path / "a", tuned, {}, "")):
        with pytest.raises(BadInput, match=re.escape("pip install 'msmjax[huggingface]'")):
            call()


# ---- merging, norms and cosines ----


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_merge_is_the_sum_rounded_once(tuned, dtype):
    adapter = random_adapter(tuned)
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), random_params(tuned))
    merged = lora.merge(tuned, params, adapter)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), merged) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), params
    )
    for name, change in changes(tuned, adapter).items():
        leaf = f"{name}_L{''.join(PROJECTIONS[name])}"
        exact = np.asarray(params["blocks"][leaf], np.float64) + change
        step = {"float32": 2.0**-20, "bfloat16": 2.0**-8}[dtype]  # one rounding, half of a last bit
        np.testing.assert_allclose(np.asarray(merged["blocks"][leaf], np.float64), exact, rtol=step * 1.001, atol=1e-6)


def test_merged_is_the_same_function(tuned):
    params, adapter = random_params(tuned), random_adapter(tuned)
    apart = our_logits(tuned, transformer.with_adapter(params, adapter))
    assert_logits_close(our_logits(dataclasses.replace(tuned, lora_rank=0), lora.merge(tuned, params, adapter)), apart)


def test_merge_keeps_the_sharding(tuned):
    model = dataclasses.replace(tuned, layers=2)
    mesh = jax.make_mesh((2, 2, 2), ("data", "fsdp", "tensor"), axis_types=(jax.sharding.AxisType.Auto,) * 3)
    params, adapter = random_params(model), random_adapter(model)
    alone = lora.merge(model, params, adapter)
    params, adapter = (jax.device_put(tree, sharding.tree_shardings(mesh, tree)) for tree in (params, adapter))
    merged = lora.merge(model, params, adapter)
    assert all(jax.tree.leaves(jax.tree.map(lambda x, y: x.sharding.is_equivalent_to(y.sharding, x.ndim), merged, params)))
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-6), merged, alone)


def test_norm_and_cosine_are_those_of_the_products(tuned):
    """Of adapters of different rank and scale: each projection, and all modules as one vector."""
    narrow = dataclasses.replace(tuned, lora_rank=2, lora_alpha=32.0)
    one, other = random_adapter(tuned), random_adapter(narrow, seed=1)
    for leaf in other["blocks"]:  # they share something, or the cosines are near 0
        half = np.s_[..., :2] if leaf.endswith("R") else np.s_[:, :2]
        other["blocks"][leaf] = 0.3 * other["blocks"][leaf] + one["blocks"][leaf][half]
    formed, others = changes(tuned, one), changes(narrow, other)

    def as_vectors(formed):
        return {"all": np.concatenate([x.ravel() for x in formed.values()]), **{name: x.ravel() for name, x in formed.items()}}

    formed, others = as_vectors(formed), as_vectors(others)
    norms, other_norms = lora.effective_norm(tuned, one), lora.effective_norm(narrow, other)
    cosines = lora.effective_cosine(one, other)
    assert list(norms) == list(cosines) == ["all", *PROJECTIONS]
    for name in formed:
        sizes = np.linalg.norm(formed[name]), np.linalg.norm(others[name])
        np.testing.assert_allclose((norms[name], other_norms[name]), sizes, rtol=1e-5)
        np.testing.assert_allclose(cosines[name], formed[name] @ others[name] / math.prod(sizes), rtol=1e-4)
    assert 0.2 < cosines["all"] < 0.9
    assert lora.effective_cosine(other, one) == pytest.approx(cosines)


def test_an_adapter_turned_against_itself_is_the_same(tuned):
    """(A Q)(Q^T B) = A B for a rotation Q: the cosine of effects is 1 where that of the arrays is not."""
    one = random_adapter(tuned)
    q_RR = np.linalg.qr(np.random.default_rng(2).normal(size=(6, 6)))[0].astype(np.float32)
    turned = {
        leaf: array @ q_RR if leaf.endswith("R") else np.einsum("RQ,LR...->LQ...", q_RR, array)
        for leaf, array in one["blocks"].items()
    }
    raw = sum(np.vdot(array, turned[leaf]) for leaf, array in one["blocks"].items())
    assert abs(raw) / sum(np.vdot(array, array) for array in one["blocks"].values()) < 0.8
    assert lora.effective_cosine(one, {"blocks": turned}) == pytest.approx(dict.fromkeys(["all", *PROJECTIONS], 1), abs=1e-5)


def test_an_untrained_adapter_does_nothing(tuned):
    untrained, trained = random_adapter(tuned), random_adapter(tuned, seed=1)
    for leaf in untrained["blocks"]:
        untrained["blocks"][leaf] *= leaf.endswith("R")  # as PEFT and init_adapter start: B is zero
    assert set(lora.effective_norm(tuned, untrained).values()) == {0.0}
    assert all(math.isnan(cosine) for cosine in lora.effective_cosine(untrained, trained).values())


# ---- counts ----


@pytest.mark.parametrize(
    ("name", "parameters", "modules"),
    [
        ("llama31_8b", 167_772_160, 224),
        ("qwen25_14b", 275_251_200, 336),
        ("qwen25_32b", 536_870_912, 448),
        ("qwen3_32b", 536_870_912, 448),
    ],
)
def test_counts_are_those_of_the_released_adapters(name, parameters, modules):
    model = transformer.ModelConfig(**SHAPES[name], **CHOSEN)
    assert transformer.count_adapter(model) == parameters
    assert len({lora._key(layer, module) for layer in range(model.layers) for _, module, _ in lora._leaves()}) == 2 * modules
    said = lora.describe(model)
    for words in ("r=64", "alpha=128", "scale 2,", f"({modules} modules)", f"{parameters:,} parameters", *lora.TARGETS):
        assert words in said
    assert "\n" not in said


def test_what_is_described_of_no_adapter(model):
    assert lora.describe(model) == "no LoRA: all parameters are trained"


def test_the_base_gets_no_weight_gradient():
    """The compiler's FLOPs per token: with N matrix parameters and p of the adapter, 4N + 6p for the adapter's gradient and 6N for
    that of everything, attention besides."""
    model = transformer.ModelConfig(
        vocab=64, layers=3, width=512, mlp=1024, heads=4, kv_heads=2, head_dim=128, rope_theta=1e4, rope_scaling=(),
        norm_epsilon=1e-6, qkv_bias=False, qk_norm=False, tied_embeddings=False, embedding_init=0.02, matrix_init=1.0,
        lora_rank=32, lora_alpha=64.0, compute_dtype="float32", scan_layers=False, remat="none", attention="xla",
    )  # fmt: skip
    T = 64
    params = jax.eval_shape(lambda: transformer.init_params(model, jax.random.key(0)))
    adapter = jax.eval_shape(lambda: transformer.init_adapter(model, jax.random.key(0)))
    tokens = jax.ShapeDtypeStruct((1, T), jnp.int32)

    def loss(adapter, params, tokens, model=model):
        whole = transformer.with_adapter(params, adapter)
        return jnp.sum(transformer.unembed(model, whole, transformer.forward(model, whole, tokens, jnp.ones_like(tokens))) ** 2)

    def flops(argument, adapter, model):
        gradient = jax.grad(lambda *arguments: loss(*arguments, model=model), argument)
        return jax.jit(gradient).lower(adapter, params, tokens).compile().cost_analysis()["flops"] / T

    bare = dataclasses.replace(model, lora_rank=0)
    N, p = transformer.count_params(model) - model.vocab * model.width, transformer.count_adapter(model)
    attention = 12 * model.layers * T * model.width  # masked scores are computed too
    # Below the first layer's queries, keys and values there is nothing to train: no gradient goes through them.
    first = 2 * model.width * model.head_dim * (model.heads + 2 * model.kv_heads)
    tuned, full = flops(0, adapter, model), flops(1, {"blocks": {}}, bare)
    np.testing.assert_allclose(tuned, 4 * N - first + 6 * p + attention, rtol=0.015)
    np.testing.assert_allclose(full, 6 * N + attention, rtol=0.015)
    np.testing.assert_allclose(tuned / full, (4 * N - first + 6 * p + attention) / (6 * N + attention), rtol=0.01)
