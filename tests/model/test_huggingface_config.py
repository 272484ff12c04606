"""config.json: what published models say is read as transformers reads it, and what is another function is refused."""

import dataclasses
import json

import pytest
import torch
import transformers

from msmjax.artifact import BadInput
from msmjax.model import huggingface, huggingface_config
from msmjax.model.transformer import ModelConfig
from tests.models import (
    OTHER,
    mesh_of,
    model_of,
    shardings_of,
)

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
    assert huggingface_config.read(config_in(tmp_path, "llama")) == {
        "vocab": 128256, "layers": 32, "width": 4096, "mlp": 14336, "heads": 32, "kv_heads": 8, "head_dim": 128,
        "rope_theta": 500000.0, "rope_scaling": (8.0, 1.0, 4.0, 8192.0), "norm_epsilon": 1e-5, "qkv_bias": False,
        "qk_norm": False, "tied_embeddings": False,
    }  # fmt: skip
    assert huggingface_config.read(config_in(tmp_path, "qwen2")) == {
        "vocab": 152064, "layers": 48, "width": 5120, "mlp": 13824, "heads": 40, "kv_heads": 8, "head_dim": 128,
        "rope_theta": 1e6, "rope_scaling": (), "norm_epsilon": 1e-6, "qkv_bias": True, "qk_norm": False,
        "tied_embeddings": False,
    }  # fmt: skip
    assert huggingface_config.read(config_in(tmp_path, "qwen3")) == {
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
    ours = huggingface_config.read(config_in(tmp_path, kind, **changes))
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
    assert ours["rope_scaling"] == (
        tuple(rope[key] for key in huggingface_config.LLAMA3_ROPE) if rope["rope_type"] == "llama3" else ()
    )


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
        (
            "llama",
            {"rope_scaling": {"type": "linear", "factor": 2.0}},
            'rope_scaling.type="linear": not implemented, must be default or llama3',
        ),
        (
            "qwen2",
            {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}},
            'rope_scaling.rope_type="yarn": not implemented, must be default or llama3',
        ),
        (  # transformers 5 writes rope_parameters, and model cards say to add this beside them
            "qwen2",
            {"rope_parameters": {"rope_type": "default"}, "rope_scaling": {"type": "yarn", "factor": 4.0}},
            'rope_scaling.type="yarn": not implemented, must be default or llama3; take another model, or remove it if',
        ),
        (
            "qwen2",
            {"rope_parameters": {"rope_type": "yarn", "factor": 4.0}, "rope_scaling": {"type": "default"}},
            'rope_parameters.rope_type="yarn": not implemented',
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
        huggingface_config.read(config_in(tmp_path, kind, **changes))
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
        huggingface_config.read(tmp_path)
    assert said in str(refused.value)


DIFFERENT = {
    "vocab": 97, "layers": 3, "width": 64, "mlp": 50, "heads": 8, "kv_heads": 4, "head_dim": 6, "rope_theta": 2e4,
    "rope_scaling": (8.0, 1.0, 4.0, 64.0), "norm_epsilon": 1e-6, "qkv_bias": True, "qk_norm": True, "tied_embeddings": True,
}  # fmt: skip


@pytest.mark.parametrize("field", DIFFERENT)
def test_another_model_than_the_experiment(saved, field):
    model = model_of(saved("llama"))
    huggingface_config.check(saved("llama"), model)
    other = dataclasses.replace(model, **{field: DIFFERENT[field]})
    for check in (
        lambda: huggingface_config.check(saved("llama"), other),
        lambda: huggingface.read_params(saved("llama"), other, shardings_of(other, mesh_of(1, 1, 1)), "float32"),
    ):
        with pytest.raises(
            BadInput, match=rf"config.json: {huggingface_config.KEYS[field]} makes model.{field}=.*, but the experiment says"
        ):
            check()


def test_every_field_of_a_model_is_decided_or_known(saved):
    decided = set(huggingface_config.read(saved("llama")))
    assert decided == set(huggingface_config.KEYS) == set(DIFFERENT)
    assert decided | set(OTHER) == {field.name for field in dataclasses.fields(ModelConfig)}
