"""The teacher: the one place where another model is asked to write or to judge.

In: prompts. Out: answers, each kept in a journal on disk before anything is done with it, under a hash of what was asked. A
pipeline is therefore plain code that asks: run again, it gets from the journal what was answered before, and pays for the rest.
The recorded teacher replays the journal of another and calls nobody.
"""

import asyncio
import collections
import contextlib
import itertools
import random
from collections.abc import Callable, Coroutine, Iterable, Sequence
from pathlib import Path
from typing import TypeVar

from msmjax.artifact import BadInput
from msmjax.corpus import provider
from msmjax.corpus.answer import Answer, Unusable, whole
from msmjax.corpus.journal import Journal, request_key
from msmjax.corpus.provider import Busy, Generate
from msmjax.corpus.teacher_config import RECORDED, TeacherConfig

T = TypeVar("T")
RATE_LIMIT = "status 429"
CALLS = 10  # of one request, until the teacher is said not to answer: with the waits below, after about four minutes
FIRST_WAIT = 0.5  # seconds between two of them; it doubles
LONGEST_WAIT = 60.0
WINDOW = 40  # last answers that the error budget looks at


class Teacher:
    """A model that is asked, with its journal and its ledger. Use within `async with`: it holds a lock on the journal.

    `generate` makes one call; by default it is the configured model, through Inspect AI. Tests and the sample corpus give a
    scripted one.
    """

    def __init__(self, config: TeacherConfig, journals: Path, generate: Generate | None = None):
        self.config = config
        self.journal = Journal(config, journals)
        self._generate = generate
        self._asking: dict[str, asyncio.Future] = {}
        self._under_way = [0, 0]  # tokens in and out: what the calls under way can come to
        self._unknown = [0, 0]  # what this run's calls can come to that may be on the bill, but whose answer never arrived
        self._last: collections.deque[bool] = collections.deque(maxlen=WINDOW)
        self._stopped: BadInput | None = None
        self._moved = asyncio.Event()  # a call ended
        self._halted = asyncio.Event()  # no call will begin
        self.calls: collections.Counter[str] = collections.Counter()  # "answered", "replayed", or how a call failed
        self.unusable: collections.Counter[str] = collections.Counter()  # reason -> answers
        self.changed: Callable[[], None] = lambda: None  # called after each answer: a progress bar's

    async def __aenter__(self):
        self.journal.__enter__()
        self._slots = asyncio.Semaphore(self.config.concurrency)
        return self

    async def __aexit__(self, *error):
        self.journal.__exit__(*error)

    async def ask(self, unit: str, prompt: str, parse: Callable[[str], T], turn: int = 0) -> tuple[T, Answer, str] | None:
        """What `parse` makes of the first usable answer, that answer, and its key; None where `tries` answers could not be used.

        `parse` raises Unusable. `turn` tells requests apart that ask the same again: another vote, a later round. Raises BadInput
        where the budget or the error budget is spent, the model refuses the key, or a transcript does not have the answer.
        """
        for attempt in range(self.config.tries):
            key = request_key(prompt, turn, attempt)
            known = key in self.journal.answers
            try:
                answer = await self._answer(key, unit, prompt)
                parsed = parse(whole(answer))
            except Unusable as reason:
                self.unusable[str(reason)] += 1
                self._note(False, str(reason), known)
                continue
            self._note(True, "", known)
            return parsed, answer, key
        return None

    @property
    def advice(self) -> str:
        """What helps where its answers cannot be used: the same command would only read them again."""
        return f"mend the cause, then raise tries or remove {self.journal.path}"

    def ledger(self) -> dict:
        """What this teacher's journal holds and cost in all, and what this run called."""
        return {
            "model": self.config.model,
            "answers": len(self.journal.answers),
            "input_tokens": self.journal.tokens[0],
            "output_tokens": self.journal.tokens[1],
            "dollars": round(self._price(self.journal.tokens), 6),
            "dollars_unknown": round(self._price(self._unknown), 6),  # at most, for answers that never arrived
            "calls": dict(sorted(self.calls.items())),
            "unusable": dict(sorted(self.unusable.items())),
        }

    def describe(self) -> str:
        """The ledger in a line."""
        failed = sum(self.calls.values()) - self.calls["answered"] - self.calls["replayed"]
        parts = [f"{self.calls['answered']:,} answered", f"{self.calls['replayed']:,} known"]
        parts += [f"{failed:,} failed"] if failed else []
        if self.unusable:
            parts.append(f"{sum(self.unusable.values()):,} unusable (most: {self.unusable.most_common(1)[0][0]})")
        return ", ".join([*parts, f"${self._price(self.journal.tokens):,.2f}"])

    def _price(self, *tokens: Sequence[int]) -> float:
        """Dollars for the sum of pairs of tokens in and out."""
        tokens_in, tokens_out = (sum(column) for column in zip(*tokens, strict=True))
        return (tokens_in * self.config.input_price + tokens_out * self.config.output_price) / 1e6

    async def _answer(self, key: str, unit: str, prompt: str) -> Answer:
        if key in self.journal.answers:
            self.calls["replayed"] += 1
            self.changed()
            return self.journal.answers[key]
        if self.config.model == RECORDED:
            raise BadInput(
                f"{self.journal.path}: has no answer for {unit}; the transcript is of other prompts, another spec or a smaller "
                "request"
            )
        if key in self._asking:  # two units that ask the same, at the same time
            return await asyncio.shield(self._asking[key])
        self._asking[key] = asyncio.get_running_loop().create_future()
        try:
            answer = await self._call(key, unit, prompt)
            self._asking[key].set_result(answer)
            return answer
        except Exception as error:
            self._asking[key].set_exception(error)
            self._asking[key].exception()  # seen, also where nobody else waits for it
            raise
        finally:
            self._asking.pop(key).cancel()  # nothing where it has its result

    async def _call(self, key: str, unit: str, prompt: str) -> Answer:
        """One paid answer, written down. Failed calls are made again after a wait that doubles, or that the server asked for."""
        failures, answered = 0, self.calls["answered"]
        for call in itertools.count():
            async with self._slots:
                try:
                    return await self._call_once(key, unit, prompt)
                except Busy as busy:
                    failed, limited = str(busy), str(busy) == RATE_LIMIT
                    own = min(FIRST_WAIT * 2 ** min(call, CALLS), LONGEST_WAIT) if busy.wait is None else busy.wait
                    # The jitter keeps those who failed together from coming back together; nobody comes before the server said.
                    wait = own * random.uniform(0.75 if busy.wait is None else 1.0, 1.25)
                if not limited:
                    self._note(False, failed, False)
                # A rate limit says that there are too many calls, not that something is wrong: who meets it keeps the slot while
                # it waits, so that fewer call, and as long as others are answered it goes on.
                failures += not (limited and self.calls["answered"] > answered)
                answered = self.calls["answered"]
                if failures == CALLS:
                    self._stop(f"{unit}: {CALLS} calls failed, the last with: {failed}; all answers are kept: run the same command "
                               "later")  # fmt: skip
                if limited:
                    await self._pause(wait)
            if not limited:
                await self._pause(wait)
        raise AssertionError("the loop has no end")

    async def _call_once(self, key: str, unit: str, prompt: str) -> Answer:
        # A token is at least a byte of text: no provider will count more.
        bound = (len(prompt.encode()), self.config.max_tokens)
        await self._afford(bound)
        self._under_way = _plus(self._under_way, bound)
        try:
            if self._generate is None:  # not before it is needed: a complete journal takes neither key nor package
                self._generate = provider.inspect_model(self.config)
            answer = await self._generate(prompt)
            self.journal.write(key, unit, answer)
            self.calls["answered"] += 1
            return answer
        except BadInput as error:
            self._halt(error)
            raise
        except Busy as busy:
            self.calls[str(busy)] += 1
            if busy.paid:
                self._unknown = _plus(self._unknown, bound)
            raise
        finally:
            self._under_way = _plus(self._under_way, bound, -1)
            self._moved.set()
            self.changed()

    async def _afford(self, bound: tuple[int, int]) -> None:
        """Returns when a call of at most so many tokens fits into the budget whatever those under way will cost."""
        while not self._stopped and self.config.budget:
            if self._price(self.journal.tokens, self._unknown, self._under_way, bound) <= self.config.budget:
                return
            if not any(self._under_way):
                self._stop(
                    f"the budget of ${self.config.budget:,.2f} is spent: ${self._price(self.journal.tokens):,.2f} for "
                    f"{len(self.journal.answers):,} answers, up to ${self._price(self._unknown):,.2f} for calls whose answer never "
                    "arrived, and the next call could exceed it; all answers are kept: raise budget and run the same command"
                )
            self._moved.clear()
            await self._moved.wait()
        if self._stopped:
            raise self._stopped

    async def _pause(self, seconds: float) -> None:
        """A wait that a stopped run does not wait out."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._halted.wait(), seconds)

    def _note(self, good: bool, reason: str, known: bool) -> None:
        """Aborts a run whose answers keep failing."""
        if known:
            return
        self._last.append(good)
        share = self._last.count(False) / len(self._last)
        if len(self._last) == WINDOW and share > self.config.error_share:
            self._stop(
                f"{share:.0%} of the last {WINDOW} answers failed or could not be used (the last: {reason}), more than "
                f"error_share={self.config.error_share}; all answers are kept: mend the cause and run the same command"
            )

    def _stop(self, why: str) -> None:
        """No call begins after this one; those under way end and are written down."""
        self._halt(BadInput(f"teacher {self.config.model}: {why}"))
        raise self._stopped

    def _halt(self, error: BadInput) -> None:
        self._stopped = self._stopped or error
        self._halted.set()


async def all_of(work: Iterable[Coroutine[None, None, T]]) -> list[T]:
    """The results in order. All run to their end, so that no answer under way is lost, before the first error is raised."""
    results = await asyncio.gather(*work, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results


def _plus(tokens: Sequence[int], more: Sequence[int], sign: int = 1) -> list[int]:
    return [one + sign * other for one, other in zip(tokens, more, strict=True)]
