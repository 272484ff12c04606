"""A model of our own as a teacher: a Hugging Face directory, such as `--export --merge` writes, answers prompts in batches here.

In: a teacher's config. Out: the teacher, where its model is "msmjax/DIRECTORY" with weights that answer in this process: a trained
arm can so write the next corpus, or judge one.
"""

import asyncio
import functools
from pathlib import Path

import jax

from msmjax.corpus.answer import Answer
from msmjax.corpus.provider import Generate
from msmjax.corpus.teacher import Teacher
from msmjax.corpus.teacher_config import LOCAL, TeacherConfig
from msmjax.data import chat
from msmjax.data.huggingface import HuggingFaceTokenizer, check_vocab
from msmjax.model import attention, generate, huggingface, huggingface_config
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
    """Loads the model over all devices of this machine. Raises BadInput for a directory that is no model with a tokenizer."""
    directory = Path(config.model.removeprefix(LOCAL))
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
    waiting: list[tuple[list[int], asyncio.Future]] = []
    turn = asyncio.Lock()
    batches = 0

    def answer(prompts: list[list[int]], seed: int) -> list[list[int]]:
        return generate.generate(
            model, params, mesh, prompts, placement=sharding.Placement, stop=tokenizer.stop_ids, max_tokens=config.max_tokens,
            temperature=config.temperature, top_p=config.top_p, seed=seed,
        )  # fmt: skip

    async def call(prompt: str) -> Answer:
        nonlocal batches
        ids = chat.render_prompt([{"role": "user", "content": prompt}], tokenizer, "a prompt of the pipeline")
        waiting.append((ids, asyncio.get_running_loop().create_future()))
        mine = waiting[-1][1]
        async with turn:  # who comes first answers for all that wait by then
            if not mine.done():
                batch, waiting[:] = list(waiting), []
                batches += 1
                made = await asyncio.to_thread(answer, [prompt_ids for prompt_ids, _ in batch], batches)
                for (_, future), new in zip(batch, made, strict=True):
                    future.set_result(new)
        new = mine.result()
        stop = "max_tokens" if len(new) == config.max_tokens else "stop"
        return Answer(tokenizer.decode(new), stop, config.model, len(ids), len(new))

    return call
