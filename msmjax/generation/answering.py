"""Many callers at a time and one model: each waits for its own answer, and all are continued together.

In: parameters, and prompts as ids with their settings, from coroutines. Out: new ids. The model works in a thread, as long as
somebody waits.
"""

import asyncio
import contextlib
import dataclasses
import threading

from jax.sharding import Mesh

from msmjax.data.tokenizer import AnyTokenizer
from msmjax.generation import generate
from msmjax.generation.generate import Made, Request, Settings
from msmjax.model.transformer import ModelConfig
from msmjax.training import sharding


class Answering:
    """A model that continues prompts."""

    def __init__(self, model: ModelConfig, params: dict, mesh: Mesh, tokenizer: AnyTokenizer):
        self.model, self.params, self.mesh, self.tokenizer = model, params, mesh, tokenizer
        self._lock = threading.Lock()  # of what follows
        self._is_at_work = False
        self._asked = 0
        self._waiting: list[Request] = []
        # Whoever waits, for a row or in one: its future, and the loop that may touch it.
        self._callers: dict[Request, tuple[asyncio.AbstractEventLoop, asyncio.Future]] = {}

    async def proceed(self, ids: list[int], settings: Settings) -> Made:
        """What continues a prompt. The same seed continues it in the same way, whoever else asks. Raises BadInput as
        `generate.check` does."""
        loop = asyncio.get_running_loop()
        mine = loop.create_future()
        with self._lock:
            self._asked += 1
            # Number 1: the draws of no seed are not those of one that somebody gives.
            unseeded = dataclasses.replace(settings, seed=self._asked % 2**32), 1
            request = Request(tuple(ids), *((settings, 0) if settings.seed is not None else unseeded))
            generate.check(self.model, request)
            self._waiting.append(request)
            self._callers[request] = loop, mine
        try:
            await asyncio.sleep(0)  # those who come at the same time are in the first batch
            with self._lock:
                if not self._is_at_work:
                    self._is_at_work = True
                    threading.Thread(target=self._work, name="generation").start()
            return await mine
        finally:
            with self._lock:
                self._callers.pop(request, None)

    def _work(self) -> None:
        """Answers until nobody waits."""
        try:
            for made in generate.serve(
                self.model, self.params, self.mesh, self._take, placement=sharding.Placement, stop=self.tokenizer.stop_ids
            ):
                with self._lock:
                    self._tell(made.request, made)
        except Exception as error:
            with self._lock:
                self._waiting, self._is_at_work = [], False
                for request in list(self._callers):
                    self._tell(request, error)

    def _take(self, count: int) -> list[Request] | None:
        with self._lock:
            waiting = [request for request in self._waiting if request in self._callers]  # others gave up
            self._waiting = waiting[count:]
            # Whoever comes from here on begins anew: nothing is left to do for this thread, whatever its rows are at.
            self._is_at_work = bool(self._callers)
            return waiting[:count] if self._is_at_work else None

    def _tell(self, request: Request, found: Made | Exception) -> None:
        if request not in self._callers:  # it gave up
            return
        loop, future = self._callers.pop(request)

        def tell() -> None:
            if not future.done():
                future.set_exception(found) if isinstance(found, Exception) else future.set_result(found)

        with contextlib.suppress(RuntimeError):  # its loop was closed
            loop.call_soon_threadsafe(tell)
