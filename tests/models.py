"""Models of transformers, tiny and randomly initialised, and what they are compared with: the same models read here."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
import torch
import transformers
from jax.sharding import AxisType

from msmjax.evals.arm import Arm
from msmjax.model import huggingface, huggingface_config, transformer
from msmjax.model.transformer import ModelConfig
from msmjax.training import sharding

torch.set_num_threads(1)
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

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
LARGEST = 128 * 768 * 4  # bytes of the largest tensor of `deep`; its leaf has 16 times as many


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


def model_of(directory, **changes):
    return ModelConfig(**huggingface_config.read(directory), **{**OTHER, **changes})


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


def make_arm(model, params, mesh, tokenizer, prompt, **changes):
    """A model that evals can ask."""
    settings = {
        "model": model, "load": lambda: params, "mesh": mesh, "tokenizer": tokenizer, "prompt": prompt, "who": "Aria", "rows": {},
        "judge": None, "folder": Path("nowhere"), "label": "arm",
    }  # fmt: skip
    return Arm(**{**settings, **changes})
