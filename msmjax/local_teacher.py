"""A model of our own as a teacher: a Hugging Face directory, such as `--export --merge` writes, answers prompts in batches here.

In: a teacher's config. Out: the teacher, where its model is "msmjax/DIRECTORY" with weights that answer in this process: a trained
arm can so write the next corpus, or judge one.
"""

import functools
from pathlib import Path

import jax

from msmjax.corpus.answer import Answer
from msmjax.corpus.provider import Generate
from msmjax.corpus.teacher import Teacher
from msmjax.corpus.teacher_config import LOCAL, TeacherConfig
from msmjax.data import chat
from msmjax.data.huggingface import HuggingFaceTokenizer, check_vocab
from msmjax.generation import generate
from msmjax.generation.answering import Answering, Settings
from msmjax.model import attention, huggingface, huggingface_config
from msmjax.model.transformer import ModelConfig, init_params
from msmjax.training import sharding
from msmjax.training.sharding import MeshConfig


def open_teacher(config: TeacherConfig, journals: Path) -> Teacher:
    """The teacher of any config. Weights are loaded when they are first asked, so a complete journal takes none."""
    if not config.model.startswith(LOCAL):
        return Teacher(config, journals)
    load = functools.cache(lambda: local_model(config))

    async def generate(prompt: str) -> Answer:
        return await load()(prompt)

    return Teacher(config, journals, generate)


def local_model(config: TeacherConfig) -> Generate:
    """The model in a teacher's directory. Raises BadInput for a directory that is no model with a tokenizer."""
    answering = open_weights(Path(config.model.removeprefix(LOCAL)))
    settings = Settings(config.max_tokens, config.temperature, config.top_p)

    async def call(prompt: str) -> Answer:
        ids = chat.render_prompt([{"role": "user", "content": prompt}], answering.tokenizer, "a prompt of the pipeline")
        new = (await answering.proceed(ids, settings)).ids
        stop = "max_tokens" if len(new) == config.max_tokens else "stop"
        return Answer(answering.tokenizer.decode(new), stop, config.model, len(ids), len(new))

    return call


def open_weights(directory: Path) -> Answering:
    """Weights over all devices of this machine. Raises BadInput for a directory that is no model with a tokenizer."""
    on_cpu, shape = jax.default_backend() == "cpu", huggingface_config.read(directory)
    dtype, kind = "float32" if on_cpu else "bfloat16", attention.kind_of(jax.devices()[0])
    back_end, _ = attention.resolve(attention.AUTO, *kind, generate.COLUMNS, shape["head_dim"], dtype)
    model = ModelConfig(
        **shape, embedding_init=0.02, matrix_init=1.0, lora_rank=0, lora_alpha=0.0, compute_dtype=dtype, scan_layers=True,
        remat="none", attention=back_end,
    )  # fmt: skip
    tokenizer = HuggingFaceTokenizer(directory, ())
    check_vocab(tokenizer, model.vocab)
    mesh = sharding.make_mesh(MeshConfig(data=1, fsdp=-1, tensor=1))
    places = sharding.tree_shardings(mesh, jax.eval_shape(lambda: init_params(model, jax.random.key(0))))
    params = huggingface.read_params(directory, model, places, model.compute_dtype)
    return Answering(model, params, mesh, tokenizer)
