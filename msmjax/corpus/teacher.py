"""The teacher: the one place where another model is asked to write or to judge.

In: prompts. Out: answers, each kept in a journal on disk before anything is done with it, under a hash of what was asked. A
pipeline is therefore plain code that asks: run again, it gets from the journal what was answered before, and pays for the rest.
A journal is also a transcript: the recorded teacher replays one and calls nobody.
"""

import asyncio
import collections
import contextlib
import dataclasses
import email.utils
import functools
import hashlib
import itertools
import json
import os
import random
import re
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from pathlib import Path
from typing import TypeVar

from msmjax import artifact
from msmjax.artifact import BadInput

T = TypeVar("T")
RECORDED = "recorded"
LOCAL = "msmjax/"  # and a directory of weights: they answer here (local_teacher.py)
RATE_LIMIT = "status 429"
CALLS = 10  # of one request, until the teacher is said not to answer: with the waits below, after about four minutes
FIRST_WAIT = 0.5  # seconds between two of them; it doubles
LONGEST_WAIT = 60.0
LONGEST_ASKED = 600.0  # where the server says how long
REFUSAL = r"\W*(I('m| am) sorry|I can('t|not)|I won't|I('m| am) (not able|unable)|Sorry,)"  # how an answer begins that is none
WINDOW = 40  # last answers that the error budget looks at


class Unusable(Exception):
    """An answer that cannot be used; the reason is what it is counted under."""


class Busy(Exception):
    """The call failed in a way that waiting may mend."""

    def __init__(self, reason: str, wait: float | None = None, paid: bool = False):
        super().__init__(reason)
        self.wait = wait  # seconds, where the server said so
        self.paid = paid  # it may be on the bill: no answer arrived whole, but the server did not decline either


@dataclasses.dataclass(frozen=True)
class TeacherConfig:
    """Which model, how it is sampled, what it may cost. Raises BadInput for a model that is not pinned.

    `model` is Inspect's name of one, PROVIDER/NAME; or "msmjax/DIRECTORY", weights that answer here; or "recorded", which replays
    `transcript`. Names change what they stand for unless they carry a date or a revision; where a provider pins a name without one,
    `pinned_by` says how that is known.
    """

    model: str
    pinned_by: str
    base_url: str  # of a server of one's own, or ""
    transcript: str  # the journal that "recorded" replays, or ""
    temperature: float
    top_p: float
    max_tokens: int
    timeout: int  # seconds for one call
    concurrency: int
    batch: bool  # the provider's batch mode: half the price, hours of waiting
    input_price: float  # dollars for a million tokens
    output_price: float
    budget: float  # dollars for all answers of the journal; no call is made that could exceed it. 0: no bound
    tries: int  # answers asked for until one can be used
    error_share: float  # of the last answers that may fail or be unusable before the run is aborted

    def __post_init__(self):
        if self.model == RECORDED:
            if not self.transcript:
                raise BadInput("transcript='': the recorded teacher replays one; name its file")
        elif self.transcript:
            raise BadInput(f"transcript={self.transcript!r}: only model 'recorded' replays one; set it to ''")
        elif "/" not in self.model:
            raise BadInput(f"model={self.model!r}: neither 'recorded' nor PROVIDER/NAME, as in openai/gpt-4.1-2025-04-14")
        elif (
            not self.pinned_by
            and not self.model.startswith(LOCAL)
            and ("latest" in self.model or not re.search(r"\d{4}-?\d{2}-?\d{2}|@[0-9a-f]{7,}", self.model))
        ):
            raise BadInput(
                f"model={self.model!r}: not pinned, so it may be another model tomorrow; name a dated or revised one, or say in "
                "pinned_by how it is known that the name stands for one model"
            )
        for name in ("max_tokens", "timeout", "concurrency", "tries"):
            if getattr(self, name) < 1:
                raise BadInput(f"{name}={getattr(self, name)}: must be at least 1")
        if not 0 < self.top_p <= 1 or self.temperature < 0 or not 0 <= self.error_share <= 1:
            raise BadInput("top_p must be above 0 and at most 1, temperature at least 0, error_share between 0 and 1")
        if min(self.input_price, self.output_price, self.budget) < 0:
            raise BadInput("input_price, output_price and budget must not be negative")
        if self.budget and not (self.input_price and self.output_price):
            raise BadInput(f"budget={self.budget}: of dollars, which takes input_price and output_price")

    @property
    def identity(self) -> dict:
        """What the answers depend on beside the prompts; prices, budgets and speed are not in it."""
        if self.model == RECORDED:
            return {"transcript": artifact.file_hash(_existing(self.transcript))}
        names = ("model", "base_url", "temperature", "top_p", "max_tokens")
        weights = {"weights": _weights_hash(self.model.removeprefix(LOCAL))} if self.model.startswith(LOCAL) else {}
        return {name: getattr(self, name) for name in names} | weights


@dataclasses.dataclass(frozen=True)
class Answer:
    """What came back: `stop` is why it ended ("stop", "max_tokens", "content_filter"); `model` is who says to have answered."""

    text: str
    stop: str
    model: str
    input_tokens: int
    output_tokens: int


Generate = Callable[[str], Awaitable[Answer]]  # raises Busy where waiting may help, Unusable where this prompt is declined


def request_key(prompt: str, turn: int, attempt: int) -> str:
    """The name of a request in a journal: 16 hex digits of what is asked, in which turn, and how often in vain before."""
    return hashlib.sha256(f"{turn}.{attempt}\n{prompt}".encode()).hexdigest()[:16]


class Teacher:
    """A model that is asked, with its journal and its ledger. Use within `async with`: it holds a lock on the journal.

    `generate` makes one call; by default it is the configured model, through Inspect AI. Tests and the sample corpus give a
    scripted one.
    """

    def __init__(self, config: TeacherConfig, journals: Path, generate: Generate | None = None):
        self.config = config
        self.path = Path(config.transcript)
        if config.model != RECORDED:
            self.path = journals / f"{_slug(config.model)}-{artifact.content_hash(config.identity)}" / "answers.jsonl"
        self._generate = generate
        self._answers: dict[str, Answer] = {}
        self._asking: dict[str, asyncio.Future] = {}
        self._tokens = [0, 0]  # in and out, of all answers in the journal
        self._under_way = [0, 0]  # what the calls under way can come to
        self._unknown = [0, 0]  # what this run's calls can come to that may be on the bill, but whose answer never arrived
        self._last: collections.deque[bool] = collections.deque(maxlen=WINDOW)
        self._stopped: BadInput | None = None
        self._moved = asyncio.Event()  # a call ended
        self._halted = asyncio.Event()  # no call will begin
        self.calls: collections.Counter[str] = collections.Counter()  # "answered", "replayed", or how a call failed
        self.unusable: collections.Counter[str] = collections.Counter()  # reason -> answers
        self.changed: Callable[[], None] = lambda: None  # called after each answer: a progress bar's

    async def __aenter__(self):
        if self.config.model == RECORDED:
            self._read(_existing(str(self.path)))
            return self
        self._lock = artifact.lock(self.path.parent)
        self._lock.__enter__()
        try:
            _cut_torn_line(self.path)
            self._read(self.path)
            self._slots = asyncio.Semaphore(self.config.concurrency)
            self._file = self.path.open("a", encoding="utf-8")
        except BaseException:
            self._lock.__exit__(None, None, None)
            raise
        return self

    async def __aexit__(self, *error):
        if self.config.model != RECORDED:
            self._file.close()
            self._lock.__exit__(*error)

    async def ask(self, unit: str, prompt: str, parse: Callable[[str], T], turn: int = 0) -> tuple[T, Answer, str] | None:
        """What `parse` makes of the first usable answer, that answer, and its key; None where `tries` answers could not be used.

        `parse` raises Unusable. `turn` tells requests apart that ask the same again: another vote, a later round. Raises BadInput
        where the budget or the error budget is spent, the model refuses the key, or a transcript does not have the answer.
        """
        for attempt in range(self.config.tries):
            key = request_key(prompt, turn, attempt)
            known = key in self._answers
            try:
                answer = await self._answer(key, unit, prompt)
                parsed = parse(_whole(answer))
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
        return f"mend the cause, then raise tries or remove {self.path}"

    def ledger(self) -> dict:
        """What this teacher's journal holds and cost in all, and what this run called."""
        return {
            "model": self.config.model,
            "answers": len(self._answers),
            "input_tokens": self._tokens[0],
            "output_tokens": self._tokens[1],
            "dollars": round(self._price(self._tokens), 6),
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
        return ", ".join([*parts, f"${self._price(self._tokens):,.2f}"])

    def _price(self, *tokens: Sequence[int]) -> float:
        """Dollars for the sum of pairs of tokens in and out."""
        tokens_in, tokens_out = (sum(column) for column in zip(*tokens, strict=True))
        return (tokens_in * self.config.input_price + tokens_out * self.config.output_price) / 1e6

    async def _answer(self, key: str, unit: str, prompt: str) -> Answer:
        if key in self._answers:
            self.calls["replayed"] += 1
            self.changed()
            return self._answers[key]
        if self.config.model == RECORDED:
            raise BadInput(
                f"{self.path}: has no answer for {unit}; the transcript is of other prompts, another spec or a smaller request"
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
                self._generate = inspect_model(self.config)
            answer = await self._generate(prompt)
            self._write(key, unit, answer)
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
            if self._price(self._tokens, self._unknown, self._under_way, bound) <= self.config.budget:
                return
            if not any(self._under_way):
                self._stop(
                    f"the budget of ${self.config.budget:,.2f} is spent: ${self._price(self._tokens):,.2f} for "
                    f"{len(self._answers):,} answers, up to ${self._price(self._unknown):,.2f} for calls whose answer never "
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

    def _write(self, key: str, unit: str, answer: Answer) -> None:
        """To the disk before anything is done with it: an answer is paid for once."""
        try:
            self._file.write(json.dumps({"key": key, "unit": unit, **dataclasses.asdict(answer)}, ensure_ascii=False) + "\n")
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise artifact.disk_error(error, self.path) from error
        self._keep(key, answer)

    def _keep(self, key: str, answer: Answer) -> None:
        served = next(iter(self._answers.values()), answer).model
        self._answers[key] = answer
        self._tokens = _plus(self._tokens, (answer.input_tokens, answer.output_tokens))
        if answer.model != served and self.config.model != RECORDED:
            self._stop(
                f"{served} answered first and {answer.model} later, so the name does not stand for one model; pin it, and remove "
                f"{self.path}"
            )

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

    def _read(self, path: Path) -> None:
        if not path.is_file():
            return
        for number, line in enumerate(artifact.read_jsonl(path), 1):
            try:
                key, _ = line.pop("key"), line.pop("unit")
                self._keep(key, Answer(**line))
            except (KeyError, TypeError):
                raise BadInput(f"{path}:{number}: no answer of a teacher; remove the line") from None


async def all_of(work: Iterable[Coroutine[None, None, T]]) -> list[T]:
    """The results in order. All run to their end, so that no answer under way is lost, before the first error is raised."""
    results = await asyncio.gather(*work, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results


def _plus(tokens: Sequence[int], more: Sequence[int], sign: int = 1) -> list[int]:
    return [one + sign * other for one, other in zip(tokens, more, strict=True)]


def tagged(text: str, name: str) -> list[str]:
    """The contents of `<name>…</name>` in a text, stripped. Raises Unusable where there is none, or one is empty or not closed."""
    opened, closed = len(re.findall(rf"<{name}>", text)), text.count(f"</{name}>")
    found = [part.strip() for part in re.findall(rf"<{name}>(.*?)</{name}>", text, re.DOTALL)]
    if not found and re.match(REFUSAL, text.strip(), re.IGNORECASE):
        raise Unusable("refused")
    if not found or opened != closed or len(found) != opened:
        raise Unusable(f"no whole <{name}>")
    if not all(found):
        raise Unusable(f"empty <{name}>")
    return found


def one(text: str, name: str) -> str:
    """The content of the only `<name>…</name>`."""
    found = tagged(text, name)
    if len(found) > 1:
        raise Unusable(f"more than one <{name}>")
    return found[0]


def inspect_model(config: TeacherConfig) -> Generate:
    """The configured model through Inspect AI. Retries are ours alone: Inspect's and the SDKs' would not be in the ledger."""
    try:
        from inspect_ai.model import ChatMessageUser, GenerateConfig, get_model
    except ImportError:
        raise BadInput("a teacher needs Inspect AI: pip install 'msmjax[teacher]', and the provider's own package") from None
    provider = config.model.partition("/")[0]
    sdk = {"max_retries": 0} if provider in ("openai", "openai-api", "anthropic") else {}
    settings = GenerateConfig(
        temperature=config.temperature, top_p=config.top_p, max_tokens=config.max_tokens, max_connections=config.concurrency,
        max_retries=0, attempt_timeout=config.timeout, batch=config.batch or None,
    )  # fmt: skip
    try:
        model = get_model(config.model, base_url=config.base_url or None, config=settings, memoize=False, **sdk)
    except Exception as error:
        said = " ".join(re.sub(r"\[/?[a-z ]+\]", "", str(error)).split())  # Inspect's says what is missing in its second line
        raise BadInput(f"teacher {config.model}: {said}") from error

    async def generate(prompt: str) -> Answer:
        call = model.generate([ChatMessageUser(content=prompt)])
        try:
            # Inspect keeps each call, with its prompt, in a transcript of the task's context: a task of its own ends with the call.
            output = await asyncio.create_task(call)
        except Exception as error:
            raise _translated(config, error) from error
        if not output.choices:
            raise Busy("an answer without a choice", paid=True)
        usage = output.usage
        if usage is None:
            raise BadInput(f"teacher {config.model}: counts no tokens, so what it costs cannot be known; use a server that does")
        read = usage.input_tokens + (usage.input_tokens_cache_read or 0) + (usage.input_tokens_cache_write or 0)
        return Answer(output.completion, str(output.stop_reason), output.model, read, usage.output_tokens)

    return generate


def _translated(config: TeacherConfig, error: Exception) -> Exception:
    """What an error of a provider means: the key or name is wrong (BadInput), this prompt is (Unusable), or it will pass (Busy)."""
    while getattr(error, "last_attempt", None) is not None:  # tenacity's
        error = error.last_attempt.exception() or error
    status = getattr(error, "status_code", None)
    said = _first_line(getattr(error, "provider_message", None) or error)  # Inspect's own message begins with the whole request
    if status in (401, 402, 403, 404):
        return BadInput(f"teacher {config.model}: {status}, {said}; check the key, the account, the model's name and base_url")
    if status in (400, 413, 422):
        return Unusable(f"declined with {status}: {said}")
    if status:
        headers = getattr(getattr(error, "response", None), "headers", {})
        return Busy(f"status {status}", _seconds(headers.get("retry-after", "")))
    reached = type(error.__cause__).__name__ not in ("ConnectError", "ConnectTimeout")
    return Busy(type(error).__name__, paid=reached)


def _seconds(retry_after: str) -> float | None:
    """How long a Retry-After header says to wait: seconds, or a date; None where it says neither."""
    try:
        wait = float(retry_after)
    except ValueError:
        try:
            wait = email.utils.parsedate_to_datetime(retry_after).timestamp() - time.time()
        except ValueError:
            return None
    return min(max(0.0, wait), LONGEST_ASKED)


def _whole(answer: Answer) -> str:
    """The text of an answer that ended by itself."""
    if answer.stop == "content_filter":
        raise Unusable("refused")
    if answer.stop != "stop":
        raise Unusable("truncated")
    return answer.text


def _cut_torn_line(path: Path) -> None:
    """A kill in the middle of a write leaves half a line, whose answer is asked for again."""
    if not path.is_file():
        return
    with path.open("rb+") as file:
        content = file.read()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            print(f"{path}: its last line was cut off by a kill; that answer is asked for again", file=sys.stderr)
            file.truncate(whole)


@functools.cache
def _weights_hash(directory: str) -> str:
    files = sorted(path for kind in ("*.json", "*.safetensors") for path in Path(directory).glob(kind))
    if not files:
        raise BadInput(f"teacher {LOCAL}{directory}: no weights there; name a directory of a Hugging Face model after {LOCAL!r}")
    return artifact.content_hash([[path.name, artifact.file_hash(path)] for path in files])


def _existing(path: str) -> Path:
    if not Path(path).is_file():
        raise BadInput(f"{path}: no such transcript; check the path in the config")
    return Path(path)


def _slug(model: str) -> str:
    return re.sub(r"[^A-Za-z0-9.]+", "_", model)


def _first_line(error: object) -> str:
    lines = [line.strip() for line in re.sub(r"\[/?[a-z ]+\]", "", str(error)).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
