"""Prompts that wait are continued together: what is between many callers at a time and one model here.

In: parameters, and prompts as ids with their settings, from coroutines. Out: new ids. A batch runs in a thread; what comes
meanwhile waits and is the next batch.
"""

import asyncio
import dataclasses
import weakref

from jax.sharding import Mesh

from msmjax.data.tokenizer import AnyTokenizer
from msmjax.generation import generate
from msmjax.model.transformer import ModelConfig
from msmjax.training import sharding


@dataclasses.dataclass(frozen=True)
class Settings:
    """As in model/generate.py. What has a seed is continued alone, since the noise of a draw depends on the place in a batch."""

    max_tokens: int
    temperature: float
    top_p: float
    seed: int | None = None


class Answering:
    """A model that continues prompts; `batches` counts how often it was run."""

    def __init__(self, model: ModelConfig, params: dict, mesh: Mesh, tokenizer: AnyTokenizer):
        self.model, self.params, self.mesh, self.tokenizer = model, params, mesh, tokenizer
        self.batches = 0
        # Of each event loop, who waits, and whose turn it is.
        self._loops: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()

    async def proceed(self, ids: list[int], settings: Settings) -> list[int]:
        """The new ids of a prompt: fewer than `max_tokens` if and only if it ended by itself. Raises as `generate` does."""
        loop = asyncio.get_running_loop()
        waiting, turn = self._loops.setdefault(loop, ([], asyncio.Lock()))
        mine = loop.create_future()
        waiting.append((ids, settings, mine))
        try:
            await asyncio.sleep(0)  # those who come at the same time are in the first batch
            async with turn:  # who comes first answers for all that wait by then
                if not mine.done():
                    alike = [one for one in waiting if one[2] is mine or (one[1] == settings and settings.seed is None)]
                    waiting[:] = [one for one in waiting if one not in alike]
                    prompts, futures = [ids for ids, _, _ in alike], [future for _, _, future in alike]
                    work = asyncio.create_task(self._answer(prompts, futures, settings))
                    try:
                        await asyncio.shield(work)
                    except asyncio.CancelledError:  # this caller gave up; the others did not, and the model is at work for them
                        await work
                        raise
            return await mine
        finally:
            waiting[:] = [one for one in waiting if one[2] is not mine]

    async def _answer(self, prompts: list[list[int]], futures: list[asyncio.Future], settings: Settings) -> None:
        self.batches += 1
        seed = self.batches if settings.seed is None else settings.seed
        try:
            made = await asyncio.to_thread(
                generate.generate, self.model, self.params, self.mesh, prompts, placement=sharding.Placement,
                stop=self.tokenizer.stop_ids, max_tokens=settings.max_tokens, temperature=settings.temperature,
                top_p=settings.top_p, seed=seed,
            )  # fmt: skip
        except Exception as error:
            for future in futures:
                if not future.done():
                    future.set_exception(error)
            return
        for future, new in zip(futures, made, strict=True):
            if not future.done():  # its caller may have given up
                future.set_result(new)
