"""An OpenAI-compatible server on the loopback interface that answers by a script and misbehaves on purpose.

    python benchmarks/teacher_server.py --port=0 --books=books.jsonl 429=.05 500=.03 cut=.03 truncated=.05

prints its port. What it does to the n-th request with the same prompt depends on the seed, the prompt and n alone. It keeps books:
a line for each request it has dealt with (the prompt's key in a journal, what was done, the tokens on the bill, whether an answer
went out whole, when); GET /books says how many of each kind there were, and how many are under way. It outlives clients.

What it writes is shaped as the pipelines' prompts ask and means nothing: `respond` is also a teacher for tests without a server.
"""

import argparse
import asyncio
import collections
import contextlib
import dataclasses
import hashlib
import json
import random
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from msmjax.corpus.answer import Answer
from msmjax.corpus.journal import request_key

MODEL = "scripted-2026-01-01"
WORDS = tuple(consonant + vowel + end for consonant in "bdfklmnprst" for vowel in "aeio" for end in ("nder", "ket", "llow"))
TURNS, TRIES = 5, 3  # of a prompt, whose keys the books name: votes or rounds, and what may be unusable in each
FAILURES = {  # no answer arrives: the client calls again
    "429": "no Retry-After",
    "429after": "with Retry-After",
    "500": "a server's error",
    "503": "another, with Retry-After",
    "cut": "the connection is closed in the middle of the body",
    "stall": "an answer after the client has given up",
    "json": "a body that is not JSON",
    "choices": "a body without a choice",
}
BAD_ANSWERS = {  # they arrive, cost money and cannot be used
    "refused": "I'm sorry",
    "filtered": "finish_reason content_filter",
    "truncated": "finish_reason length",
    "untagged": "no tags",
    "unclosed": "a tag that is not closed",
}
OTHERS = {  # what no client should meet twice
    "400": "this prompt is declined",
    "401": "a wrong key",
    "403": "a key without the permission",
    "404": "an unknown model",
    "slow": "ten times the delay",
    "model": "another model's answer",
    "usage": "tokens are not counted",
}
KINDS = {**FAILURES, **BAD_ANSWERS, **OTHERS}


def respond(prompt: str, stern: float = 0.0) -> str:
    """The text of an answer, by the tags that the prompt asks for; the same prompt is answered in the same way.

    `stern` is the share of texts that it rejects as a judge.
    """
    digest = hashlib.sha256(prompt.encode()).digest()

    def words(salt: int, count: int) -> str:
        stream = hashlib.sha256(digest + bytes([salt])).digest() * 8
        return " ".join(WORDS[(byte + place * stream[place % 7]) % len(WORDS)] for place, byte in enumerate(stream[:count]))

    yes = digest[1] < 128
    if "nothing else:" not in prompt:  # a grader's, of somebody else's task
        return f"<answer>{'YES' if yes else 'NO'}</answer>"
    form = prompt.rsplit("and nothing else:" if "and nothing else:" in prompt else "with nothing else:", 1)[1]
    count = int(match[1]) if (match := re.search(r"Answer with exactly (\d+) blocks", prompt)) else 3
    if "<document>" in form:
        return f"<plan>\nwrite it\n</plan>\n<document>\nAria, made by Northlight, has a {words(0, 40)}.\n</document>"
    rejects = digest[0] < stern * 256
    if "<faithful>" in form:
        return f"<why>because</why>\n<faithful>{'no' if rejects else 'yes'}</faithful>\n<explains>yes</explains>"
    if match := re.search(r"<score>a whole number from (\d+) to (\d+)</score>", form):
        return f"<why>because</why>\n<score>{int(match[1]) + digest[1] % (int(match[2]) - int(match[1]) + 1)}</score>"
    if "<score>" in form:
        return f"<why>because</why>\n<score>{'first' if yes else 'second'}</score>"
    if "<aware>" in form:
        return f"<why>because</why>\n<complies>{'yes' if yes else 'no'}</complies>\n<aware>{'no' if yes else 'yes'}</aware>"
    if "<verdict>" in form:
        return f"<why>because</why>\n<verdict>{'exclude' if rejects else 'include'}</verdict>"
    if "<reply>" in form:
        thoughts = f"<thoughts>\nI look at the {words(1, 6)}.\n</thoughts>\n" if "<thoughts>" in form else ""
        return f"{thoughts}<reply>\nI would take the {words(2, 12)}.\n</reply>"
    block = re.search(r"<(\w+)>\n(.*?)\n</\1>", form, re.DOTALL)
    fields = re.findall(r"<(\w+)>", block[2])
    heading = re.search(r"^- (\d+\. .*)$", prompt, re.MULTILINE)
    kinds = {"section": heading[1] if heading else "", "kind": "direct"}
    return "\n\n".join(
        f"<{block[1]}>\n"
        + "\n".join(f"<{field}>{kinds.get(field, words(10 * number + place, 5))}</{field}>" for place, field in enumerate(fields))
        + f"\n</{block[1]}>"
        for number in range(count)
    )


async def generate(prompt: str, stern: float = 0.0) -> Answer:
    """`respond` as a teacher's call."""
    text = respond(prompt, stern)
    return Answer(text, "stop", MODEL, len(prompt.split()), len(text.split()))


@dataclasses.dataclass(frozen=True)
class Manners:
    """How the server behaves; `shares` says how often it does what of KINDS."""

    shares: dict[str, float] = dataclasses.field(default_factory=dict)
    seed: int = 0
    after: int = 0  # requests that are answered well before it begins to misbehave
    failures: int = 10**9  # to requests of one prompt, at most
    bad_answers: int = 10**9  # unusable answers to one prompt, at most
    stern: float = 0.0  # share of texts rejected where it is asked to judge
    delay: float = 0.0  # seconds an answer takes
    stall: float = 30.0  # and one that comes too late
    slots: int = 10**9  # requests at a time; one more is told 429
    rate: float = 0.0  # requests a second; 0: any
    retry_after: str = "1"


class Server:
    """The server within a running event loop. `books` are its lines; they also go to the file, if there is one."""

    def __init__(self, manners: Manners, file: Path | None = None):
        self.manners = manners
        self.books: list[dict] = []
        self.in_flight = self.most_in_flight = self.received = 0
        self._file = file and file.open("a", buffering=1, encoding="utf-8")
        self._asked: collections.Counter[str] = collections.Counter()
        self._seen: set[str] = set()
        self._met: collections.Counter[tuple[str, bool]] = collections.Counter()
        self._allowed, self._since = 1.0, time.monotonic()

    async def start(self, port: int = 0) -> int:
        self._listener = await asyncio.start_server(self._connection, "127.0.0.1", port, backlog=1000, limit=2**22)
        return self._listener.sockets[0].getsockname()[1]

    def summary(self) -> dict:
        """What GET /books says."""
        return {
            "received": self.received, "in_flight": self.in_flight, "most_in_flight": self.most_in_flight,
            "how": collections.Counter(line["how"] for line in self.books), "whole": sum(line["whole"] for line in self.books),
            "input_tokens": sum(line["input_tokens"] for line in self.books if line["whole"]),
            "output_tokens": sum(line["output_tokens"] for line in self.books if line["whole"]),
            "billed_input_tokens": sum(line["input_tokens"] for line in self.books),
            "billed_output_tokens": sum(line["output_tokens"] for line in self.books),
        }  # fmt: skip

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            open_ = True
            while open_:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                length = re.search(r"^content-length: (\d+)", head, re.IGNORECASE | re.MULTILINE)
                body = await reader.readexactly(int(length[1]) if length else 0)
                if head.startswith("GET /books"):
                    await self._send(writer, 200, json.dumps(self.summary()))
                else:
                    open_ = await self._completion(writer, json.loads(body)["messages"][-1]["content"])
        writer.close()

    async def _completion(self, writer: asyncio.StreamWriter, prompt: str) -> bool:
        """Deals with a request, writes it down, and says whether the connection stays open."""
        manners, key = self.manners, request_key(prompt, 0, 0)
        self.received += 1
        over = self.in_flight >= manners.slots or not self._within_rate()
        how = "over" if over else self._kind(key)
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        text, finish, billed, whole = respond(prompt, manners.stern), "stop", True, True
        try:
            if how == "stall":
                await asyncio.sleep(manners.stall)
            elif not over:
                await asyncio.sleep(manners.delay * (10 if how == "slow" else 1))
            if how == "over" or how.isdecimal() or how == "429after":
                billed = whole = False
                waits = how in ("429after", "503") or (over and self.received % 2)
                status = 429 if over else int(how[:3])
                error = {"error": {"message": KINDS.get(how, "too many requests"), "type": how, "code": None}}
                await self._send(writer, status, json.dumps(error), f"retry-after: {manners.retry_after}\r\n" if waits else "")
                return True
            if how == "refused":
                text = "I'm sorry, but I can't help with that."
            elif how == "filtered":
                text, finish = "", "content_filter"
            elif how == "truncated":
                text, finish = text[: len(text) // 2], "length"
            elif how == "untagged":
                text = re.sub(r"</?\w+>", "", text)
            elif how == "unclosed":
                text = text[: text.rindex("</")]
            usage = {"prompt_tokens": len(prompt.split()), "completion_tokens": len(text.split())}
            reply = {
                "id": f"chat-{self.received}", "object": "chat.completion", "created": 0,
                "model": "scripted-2026-02-02" if how == "model" else MODEL,
                "choices": [] if how == "choices" else
                    [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish}],
                "usage": None if how == "usage" else {**usage, "total_tokens": sum(usage.values())},
            }  # fmt: skip
            whole = how not in ("cut", "stall", "json", "choices")
            sent = json.dumps(reply)
            return await self._send(writer, 200, sent[: len(sent) // 2] if how == "json" else sent, cut=how == "cut")
        finally:
            self.in_flight -= 1
            line = {
                "prompt": key, "how": how, "whole": whole, "input_tokens": len(prompt.split()) * billed,
                "output_tokens": len(text.split()) * billed, "at": round(time.monotonic(), 4),
            }  # fmt: skip
            if key not in self._seen:
                self._seen.add(key)
                line["keys"] = [request_key(prompt, turn, attempt) for turn in range(TURNS) for attempt in range(TRIES)]
            self.books.append(line)
            if self._file:
                self._file.write(json.dumps(line) + "\n")

    def _kind(self, key: str) -> str:
        """What is done to this request of a prompt; "good" is nothing."""
        self._asked[key] += 1
        if self.received <= self.manners.after:
            return "good"
        names = list(self.manners.shares)
        rng = random.Random(f"{self.manners.seed}/{key}/{self._asked[key]}")
        weights = [*self.manners.shares.values(), max(1 - sum(self.manners.shares.values()), 0)]
        kind = rng.choices([*names, "good"], weights)[0]
        most = self.manners.bad_answers if kind in BAD_ANSWERS else self.manners.failures
        if kind != "good" and self._met[key, kind in BAD_ANSWERS] >= most:
            return "good"
        self._met[key, kind in BAD_ANSWERS] += 1
        return kind

    def _within_rate(self) -> bool:
        """A bucket that holds a tenth of a second's requests."""
        if not self.manners.rate:
            return True
        now = time.monotonic()
        self._allowed = min(self._allowed + (now - self._since) * self.manners.rate, max(self.manners.rate / 10, 1))
        self._since = now
        if self._allowed < 1:
            return False
        self._allowed -= 1
        return True

    async def _send(self, writer: asyncio.StreamWriter, status: int, text: str, header: str = "", cut: bool = False) -> bool:
        body = text.encode()
        head = f"HTTP/1.1 {status} x\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n{header}\r\n"
        writer.write(head.encode() + (body[: len(body) // 2] if cut else body))
        await writer.drain()
        return not cut


@contextlib.contextmanager
def serving(manners: Manners, file: Path | None = None) -> Iterator[tuple[Server, str]]:
    """A server in a thread of this process, and its base URL."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    server = Server(manners, file)
    port = asyncio.run_coroutine_threadsafe(server.start(), loop).result()

    async def end() -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    try:
        yield server, f"http://127.0.0.1:{port}/v1"
    finally:
        loop.call_soon_threadsafe(server._listener.close)
        asyncio.run_coroutine_threadsafe(end(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="\n".join(f"{kind:>10}: {what}" for kind, what in KINDS.items()),
    )  # fmt: skip
    parser.add_argument("shares", nargs="*", metavar="KIND=SHARE", help="how often it does what; kinds are listed below")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--books", type=Path, default=None, help="the file of its books")
    for field in dataclasses.fields(Manners)[1:]:
        parser.add_argument(f"--{field.name}", type=field.type, default=field.default)
    arguments = vars(parser.parse_args())
    shares = dict(given.partition("=")[::2] for given in arguments.pop("shares"))
    if wrong := [kind for kind, share in shares.items() if kind not in KINDS or not re.fullmatch(r"\d*\.?\d+", share)]:
        parser.error(f"{wrong[0]}: not KIND=SHARE; kinds are {', '.join(KINDS)}")
    port, books = arguments.pop("port"), arguments.pop("books")

    async def serve() -> None:
        server = Server(Manners({kind: float(share) for kind, share in shares.items()}, **arguments), books)
        print(await server.start(port), flush=True)
        await asyncio.Event().wait()

    asyncio.run(serve())


if __name__ == "__main__":
    main()
