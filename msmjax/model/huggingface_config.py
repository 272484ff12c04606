"""The config.json of a Hugging Face directory: Llama 3, Qwen2.5 and Qwen3 (dense), as transformers keeps them.

In: a directory. Out: the fields of a ModelConfig that its config.json decides; and the other way round, a config of the family that
has a model's features. A config whose function is not ours is refused by the name of what differs.
"""

import dataclasses
import json
import math
from pathlib import Path

import numpy as np

from msmjax.artifact import BadInput
from msmjax.model.transformer import ModelConfig

CONFIG = "config.json"


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
ROPES = ("default", "llama3")
ROPE_THETA = 10_000.0  # of all three families, where config.json does not say


def read(directory: Path) -> dict:
    """The ModelConfig fields that `config.json` decides. Raises BadInput for what makes another function than ours, by name."""
    path = directory / CONFIG
    said = read_json(path)
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


def check(directory: Path, model: ModelConfig) -> None:
    """Raises BadInput that names the first field in which `config.json` and the experiment's model differ."""
    for field, theirs in read(directory).items():
        ours = getattr(model, field)
        if tuple(ours) != theirs if field == "rope_scaling" else ours != theirs:
            raise BadInput(
                f"{directory / CONFIG}: {KEYS[field]} makes model.{field}={theirs!r}, but the experiment says {ours!r}; "
                "set that to the file's, or take the weights of another model"
            )


def make(model: ModelConfig, dtype: np.dtype) -> dict:
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


def read_json(path: Path) -> dict:
    """An object of a JSON file of the directory: its config.json, or the index of its tensors."""
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
    for where, rope in given.items():  # first: model cards say to add such a rope_scaling, and rope_parameters may be there too
        for key in ("rope_type", "type") if isinstance(rope, dict) else ():
            if rope.get(key) not in (None, *ROPES):
                raise BadInput(
                    f"{path}: {where}.{key}={_short(rope[key])}: not implemented, must be {' or '.join(ROPES)}; take another "
                    "model, or remove it if it was added for texts longer than those the model was trained on"
                )
    if len(given) > 1 and given["rope_scaling"] != given["rope_parameters"]:
        raise BadInput(f"{path}: rope_scaling and rope_parameters differ; remove the wrong one")
    where, rope = next(iter(given.items()), ("rope_scaling", {}))
    if not isinstance(rope, dict):
        raise BadInput(f"{path}: {where}={_short(rope)}: must be an object")
    rope = {key: value for key, value in rope.items() if value is not None}
    kinds = {key: rope[key] for key in ("rope_type", "type") if key in rope}  # `type` is its old name
    for key, kind in kinds.items():
        if kind != next(iter(kinds.values())):
            raise BadInput(f"{path}: {where}.{key}={_short(kind)}: must be {' or '.join(ROPES)}, and only one; take another model")
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
