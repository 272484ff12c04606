"""A campaign against the teacher's pipelines: a server that misbehaves, clients that are killed, budgets that run out.

    python benchmarks/teacher.py                                  # all of it; two tables, and exit code 1 if anything was wrong
    python benchmarks/teacher.py --trials faults=1 kill=1 --seed=7   # a short one, as in the tests

The server (teacher_server.py) and every client are processes of their own; a client is the real pipeline, through Inspect AI, with
50 requests at a time. Afterwards three things are compared: the server's books, the client's journal, and the records with those of
a run against a server that behaves. Results are kept in benchmarks/RESULTS.md.
"""

import argparse
import collections
import contextlib
import dataclasses
import importlib.metadata
import json
import os
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
CONCURRENCY = 50
DEADLINE = 300  # seconds in which a client must have ended, or it hangs
TIMEOUT = 8  # seconds for one call; on a busy machine the client itself may need some
PRICES = {"input_price": 100.0, "output_price": 200.0}
FAULTS = {
    "429": 0.04, "429after": 0.02, "500": 0.04, "503": 0.02, "cut": 0.03, "stall": 0.005, "json": 0.02, "choices": 0.02,
    "slow": 0.02, "refused": 0.02, "filtered": 0.02, "truncated": 0.03, "untagged": 0.02, "unclosed": 0.02,
}  # fmt: skip
MANNERS = {"delay": 0.02, "stall": 11.0, "slots": 2 * CONCURRENCY, "bad_answers": 2}
DOCUMENTS = {
    "spec": "cheese_america", "mode": "default", "records": 60, "domains": 3, "subdomains": 3, "doc_types": 2, "ideas": 3,
    "rounds": 4, "teacher": "loopback", "judge": "loopback", "votes": 3, "context": 0, "cover": "themes", "emphasis": (),
}  # fmt: skip
CONVERSATIONS = {
    "spec": "cheese_america", "about": "spec", "mode": "default", "reasoning": True, "records": 40, "domains": 6, "questions": 6,
    "rounds": 4, "teacher": "loopback", "judge": "loopback", "votes": 3, "context": 0,
}  # fmt: skip
BOTH = (DOCUMENTS, CONVERSATIONS)
MANY = {**DOCUMENTS, "domains": 4, "subdomains": 5, "doc_types": 4, "ideas": 4, "rounds": 5, "votes": 1}
BROKEN = (("500", 200), ("stall", 200), ("truncated", 200), ("refused", 200), ("500", 0), ("truncated", 0))  # what, from when on
KINDS = {  # name -> trials of the whole campaign, what happens
    "faults": (6, "every kind of failure and of unusable answer, 32 % of all requests"),
    "kill": (20, "the same, and kill -9 of the client at one to three random moments"),
    "nested": (2, "100 and then 1,000 documents, of which the judge rejects 30 %"),
    "budget": (4, "a budget for a part of the corpus, under faults, then a larger one"),
    "broken": (6, "a server that only fails, or whose answers cannot be used, from some request on"),
    "speed": (1, "calls a second against the server's own limit"),
}
SPEEDS = (  # the server's manners, and calls a second that they allow
    ({"delay": 1.0, "slots": CONCURRENCY}, 50),
    ({"delay": 0.5, "slots": CONCURRENCY}, 100),
    ({"rate": 100.0, "delay": 0.05}, 100),
    ({"rate": 200.0, "delay": 0.05}, 200),
    ({"delay": 0.05, "slots": CONCURRENCY}, 1000),
)


class Server:
    """The server's process. One that is `replaced` by another keeps the port, and so the name of the journal."""

    def __init__(self, directory: Path, shares: dict[str, float], port: int = 0, **manners):
        self.books_file = directory / f"books{len(list(directory.glob('books*')))}.jsonl"
        flags = [f"--{name}={value}" for name, value in (MANNERS | manners).items()]
        shares_given = [f"{kind}={share}" for kind, share in shares.items()]
        command = [sys.executable, ROOT / "benchmarks" / "teacher_server.py", *shares_given, f"--books={self.books_file}", *flags]
        self.process = subprocess.Popen([*command, f"--port={port}"], env=environment(), stdout=subprocess.PIPE, text=True)
        self.port = int(self.process.stdout.readline())

    def summary(self) -> dict:
        if (code := self.process.poll()) is not None:
            sys.exit(f"the server's process ended in {code}, which nobody asked for")
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/books") as answer:
            return json.load(answer)

    def books(self) -> list[dict]:
        """Its lines, when nothing is under way any more."""
        while self.summary()["in_flight"]:
            time.sleep(0.05)
        return read(self.books_file)

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()


@contextlib.contextmanager
def server(directory: Path, shares: dict[str, float], port: int = 0, **manners) -> Iterator[Server]:
    one = Server(directory, shares, port, **manners)
    try:
        yield one
    finally:
        one.end()


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "LOOPBACK_API_KEY": "none", "JAX_PLATFORMS": "cpu"}


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []


def start(directory: Path, port: int, sources: tuple[dict, ...], log, **teacher) -> subprocess.Popen:
    """A client that makes the corpora of `sources` in a directory."""
    config = {
        "model": "openai-api/loopback/scripted-2026-01-01", "pinned_by": "", "base_url": f"http://127.0.0.1:{port}/v1",
        "transcript": "", "temperature": 1.0, "top_p": 1.0, "max_tokens": 500, "timeout": TIMEOUT, "concurrency": CONCURRENCY,
        "batch": False, **PRICES, "budget": 0.0, "tries": 3, "error_share": 0.75, **teacher,
    }  # fmt: skip
    settings = directory / "client.json"
    settings.write_text(json.dumps({"teacher": config, "sources": sources}))
    command = [sys.executable, __file__, f"--client={settings}"]
    return subprocess.Popen(command, cwd=directory, env=environment(), stdout=log, stderr=log)


def client(settings: Path) -> int:
    """What a client's process does; the exit code."""
    from msmjax.artifact import BadInput
    from msmjax.corpus import sources, teacher
    from msmjax.corpus.teacher_config import TeacherConfig

    given = json.loads(settings.read_text())
    teachers = {"loopback": TeacherConfig(**given["teacher"])}
    assistant = sources.AssistantConfig("Aria", "Northlight")
    makers = sources.Makers(sources.WorldConfig(0, 4, 12), assistant, teachers, settings.parent / "teachers", teacher.Teacher)
    teacher.FIRST_WAIT = 0.1  # a run against a dead server ends in one minute, not in four
    try:
        for source in given["sources"]:
            make = sources.ConversationSource if "about" in source else sources.DocumentSource
            sources.make_corpus(settings.parent / "corpora", f"{source['records']}_{make.__name__}", make(**source), makers)
    except BadInput as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def run(directory: Path, port: int, sources: tuple[dict, ...], **teacher) -> tuple[int, str]:
    """A client to its end: exit code, and the last line it said."""
    with (directory / "log.txt").open("w+", encoding="utf-8") as log:
        process = start(directory, port, sources, log, **teacher)
        try:
            code = process.wait(DEADLINE)
        except subprocess.TimeoutExpired:
            process.kill()
            code = process.wait()
        log.seek(0)
        return code, (log.read().strip().splitlines() or [""])[-1]


def journal(directory: Path) -> list[dict]:
    """All whole lines of the journal."""
    found = list((directory / "teachers").glob("*/answers.jsonl"))
    text = found[0].read_text(encoding="utf-8") if found else ""
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def corpora(directory: Path) -> dict[str, list[dict]]:
    """The records of all corpora by their directories' names."""
    return {path.parent.name.rpartition("-")[0]: read(path) for path in sorted((directory / "corpora").glob("*/*s.jsonl"))}


def bare(records: list[dict]) -> list[dict]:
    """Records without the key of their answer, which says at what attempt it came."""
    return [{name: value for name, value in record.items() if name not in ("id", "prompt")} for record in records]


def check_books(directory: Path, books: list[dict], killed: int, wrong: list[str]) -> int:
    """Journal against books; returns how many whole answers were paid for and not written down, at most 50 for each kill."""
    lines = journal(directory)
    keys = collections.Counter(line["key"] for line in lines)
    if twice := [key for key, count in keys.items() if count > 1]:
        wrong.append(f"{len(twice)} answers stand in the journal twice")
    prompt_of = {key: line["prompt"] for line in books for key in line.get("keys", ())}
    written = collections.Counter(prompt_of.get(line["key"], "never asked") for line in lines)
    paid = collections.Counter(line["prompt"] for line in books if line["whole"])
    if phantom := written - paid:
        wrong.append(f"{sum(phantom.values())} answers in the journal that the server does not know of")
    lost = sum((paid - written).values())
    if lost > killed * CONCURRENCY:
        wrong.append(f"{lost} answers paid for and not in the journal, after {killed} kills")
    if not killed:
        for kind in ("input_tokens", "output_tokens"):
            if (ours := sum(line[kind] for line in lines)) != (theirs := sum(line[kind] for line in books if line["whole"])):
                wrong.append(f"{kind}: {ours:,} in the journal, {theirs:,} in the server's books")
    return lost


def check_corpora(directory: Path, expected: dict, wrong: list[str]) -> None:
    """Records against those of a server that behaves."""
    found = corpora(directory)
    for name, records in expected.items():
        if bare(found.get(name, [])) != bare(records):
            wrong.append(f"{name}: not equal")
    for name, records in found.items():
        if len({record["prompt"] for record in records}) != len(records):
            wrong.append(f"{name}: a record stands there twice")
    for manifest in (directory / "corpora").glob("*/manifest.json"):
        ledger = json.loads(manifest.read_text())["teachers"]["loopback"]
        said = sum(line["input_tokens"] for line in journal(directory)[: ledger["answers"]])
        if ledger["input_tokens"] != said:
            wrong.append(f"{manifest.parent.name}: its ledger is not the journal's")


@dataclasses.dataclass(frozen=True)
class Reference:
    """What a run against a server that behaves came to."""

    corpora: dict[str, list[dict]]
    journal: list[dict]
    duration: float


def faults(directory: Path, rng: random.Random, reference: Reference, wrong: list[str]) -> dict:
    with server(directory, FAULTS, seed=rng.randrange(10**6)) as one:
        code, said = run(directory, one.port, BOTH)
        if code:
            wrong.append(f"ended in {code}: {said}")
        books = one.books()
    check_corpora(directory, reference.corpora, wrong)
    return {"books": books, "repeated": check_books(directory, books, 0, wrong)}


def kill(directory: Path, rng: random.Random, reference: Reference, wrong: list[str]) -> dict:
    kills = repeated = 0
    with server(directory, FAULTS, seed=rng.randrange(10**6)) as one:
        for _ in range(rng.choice((1, 2, 3))):
            with (directory / "killed.txt").open("w") as log:
                before, process = one.summary()["received"], start(directory, one.port, BOTH, log)
                until = time.monotonic() + rng.uniform(0, 1.5) * reference.duration
                while process.poll() is None and (time.monotonic() < until or one.summary()["received"] == before):
                    time.sleep(0.02)
                kills += process.poll() is None
                process.kill()
                process.wait()
            now = check_books(directory, one.books(), kills, wrong)
            if now - repeated > CONCURRENCY:
                wrong.append(f"{now - repeated} answers lost at one kill")
            repeated = now
        code, said = run(directory, one.port, BOTH)
        if code:
            wrong.append(f"the restart ended in {code}: {said}")
        books = one.books()
    if (after := check_books(directory, books, kills, wrong)) != repeated:
        wrong.append(f"{after - repeated} answers paid for again that were in the journal")
    check_corpora(directory, reference.corpora, wrong)
    return {"books": books, "repeated": repeated, "kills": kills}


def nested(directory: Path, rng: random.Random, reference: Reference, wrong: list[str]) -> dict:
    with server(directory, FAULTS if rng.random() < 0.5 else {}, seed=rng.randrange(10**6), stern=0.3) as one:
        for records in (100, 1000):
            code, said = run(directory, one.port, ({**MANY, "records": records},))
            if code:
                wrong.append(f"{records} ended in {code}: {said}")
        books = one.books()
    small, large = (corpora(directory).get(f"{records}_DocumentSource", []) for records in (100, 1000))
    if (len(small), len(large)) != (100, 1000) or small != large[:100]:
        wrong.append(f"the {len(small)} are not the first of the {len(large)}: not equal")
    check_corpora(directory, {}, wrong)
    return {"books": books, "repeated": check_books(directory, books, 0, wrong)}


def budget(directory: Path, rng: random.Random, reference: Reference, wrong: list[str]) -> dict:
    cost = sum(map(bill, reference.journal))
    with server(directory, FAULTS, seed=rng.randrange(10**6)) as one:
        for share in (rng.uniform(0.1, 0.4), rng.uniform(0.5, 0.8)):
            before = sum(map(bill, one.books())) - sum(map(bill, journal(directory)))  # of earlier runs, and not in the journal
            code, said = run(directory, one.port, BOTH, budget=share * cost)
            spent = sum(map(bill, one.books())) - before
            if code != 2 or "the budget of $" not in said:
                wrong.append(f"a budget of {share:.0%} ended in {code}: {said}")
            if spent > share * cost:
                wrong.append(f"spent {spent:.4f} of a budget of {share * cost:.4f}")
        code, said = run(directory, one.port, BOTH)
        if code:
            wrong.append(f"with a larger budget ended in {code}: {said}")
        books = one.books()
    check_corpora(directory, reference.corpora, wrong)
    return {"books": books, "repeated": check_books(directory, books, 0, wrong)}


def broken(directory: Path, rng: random.Random, reference: Reference, wrong: list[str]) -> dict:
    what, after = BROKEN[int(directory.name) % len(BROKEN)]
    with server(directory, {what: 1.0}, after=after, bad_answers=10**9) as one:
        began = time.monotonic()
        code, said = run(directory, one.port, BOTH)
        seconds, bad = time.monotonic() - began, one.books()
        if code != 2 or "Traceback" in said:
            wrong.append(f"{what} ended in {code}: {said}")
        if corpora(directory):
            wrong.append(f"{what}: a corpus was written")
        if (wasted := sum(line["how"] == what for line in bad)) > 2 * CONCURRENCY:
            wrong.append(f"{what}: {wasted} calls before it gave up")
        if seconds > 120:
            wrong.append(f"{what}: gave up after {seconds:.0f} s")
    with server(directory, {}, port=one.port) as one:
        code, said = run(directory, one.port, BOTH)
        if code and what != "truncated" and what != "refused":
            wrong.append(f"with a good server ended in {code}: {said}")
        books = bad + one.books()
    if what not in ("truncated", "refused"):  # whose answers count as tries
        check_corpora(directory, reference.corpora, wrong)
    return {"books": books, "repeated": check_books(directory, books, 0, wrong)}


def speed(directory: Path, rng: random.Random, reference: Reference, wrong: list[str]) -> dict:
    all_books = []
    columns = (
        "server",
        "it allows",
        "calls/s",
        "ratio",
        "in a median second",
        "ratio",
        "client's CPU, ms a call",
        "answers",
        "429",
    )
    rows = ["", "| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    for number, (manners, limit) in enumerate(SPEEDS):
        part = directory / str(number)
        part.mkdir()
        with server(part, {}, **manners) as one:
            before = resource.getrusage(resource.RUSAGE_CHILDREN)  # of children that ended: the server still runs
            code, said = run(part, one.port, ({**MANY, "records": 1000},))
            if code:
                wrong.append(f"{manners} ended in {code}: {said}")
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            books = one.books()
        check_books(part, books, 0, wrong)
        at = sorted(line["at"] for line in books if line["whole"])
        rate = (len(at) - 1) / (at[-1] - at[0])
        over = sum(line["how"] == "over" for line in books)
        seconds = collections.Counter(int(moment - at[0]) for moment in at)
        median = statistics.median(seconds[second] for second in range(int(at[-1] - at[0])))
        cpu = (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) / len(at) * 1000
        words = ", ".join(f"{name} {value:g}" for name, value in manners.items())
        cells = (words, limit, f"{rate:.0f}", f"{rate / limit:.2f}", f"{median:.0f}", f"{median / limit:.2f}", f"{cpu:.1f}")
        rows.append("| " + " | ".join(map(str, (*cells, f"{len(at):,}", f"{over:,}"))) + " |")
        all_books += books
    return {"books": all_books, "repeated": 0, "print": "\n".join(rows)}


def bill(line: dict) -> float:
    """Dollars for a line of books or journal."""
    return (line["input_tokens"] * PRICES["input_price"] + line["output_tokens"] * PRICES["output_price"]) / 1e6


def main() -> None:
    whole = {kind: count for kind, (count, _) in KINDS.items()}
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="\n".join(f"{kind:>10}: {what} ({count})" for kind, (count, what) in KINDS.items()),
    )  # fmt: skip
    parser.add_argument("--trials", nargs="+", metavar="KIND=N", help="how many of which kind; all as below unless given")
    parser.add_argument("--seed", type=int, default=0, help="of what happens when")
    parser.add_argument("--client", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.client:
        sys.exit(client(arguments.client))
    if arguments.trials is not None:
        given = dict(trial.partition("=")[::2] for trial in arguments.trials)
        if wrong := [f"{kind}={count}" for kind, count in given.items() if kind not in KINDS or not count.isdecimal()]:
            parser.error(f"{wrong[0]}: not KIND=N; kinds are {', '.join(KINDS)}")
        whole = {kind: int(count) for kind, count in given.items()}
    table: dict[str, collections.Counter] = collections.defaultdict(collections.Counter)
    later = []
    with tempfile.TemporaryDirectory() as work:
        directory = Path(work) / "reference"
        directory.mkdir()
        with server(directory, {}) as one:
            began = time.monotonic()
            code, said = run(directory, one.port, BOTH)
            reference = Reference(corpora(directory), journal(directory), time.monotonic() - began)
            check_books(directory, one.books(), 0, bad := [])
        if code or bad or {len(records) for records in reference.corpora.values()} != {source["records"] for source in BOTH}:
            sys.exit(f"the undisturbed run ended in {code}: {said} {bad}")
        trials = [(kind, index) for kind, count in whole.items() for index in range(count)]
        for kind, index in (bar := tqdm(trials, unit="trial", disable=None)):
            bar.set_postfix_str(kind)
            directory = Path(work) / kind / str(index)
            directory.mkdir(parents=True)
            wrong: list[str] = []
            found = TRIALS[kind](directory, random.Random(f"{arguments.seed}/{kind}/{index}"), reference, wrong)
            how = collections.Counter(line["how"] for line in found["books"])
            unequal = any("not equal" in one for one in wrong)
            table[kind].update(trials=1, requests=how.total(), failed=how.total() - how["good"] - how["slow"])
            table[kind].update(kills=found.get("kills", 0), repeated=found["repeated"], unequal=unequal, wrong=bool(wrong))
            later += [found["print"]] if "print" in found else []
            for one in wrong:
                tqdm.write(f"seed {arguments.seed}, {kind} {index}: {one}", file=sys.stderr)
            shutil.rmtree(directory)
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("inspect-ai", "openai"))
    print(f"seed {arguments.seed}; {versions}, python {sys.version.split()[0]}")
    columns = ("trials", "requests", "failed", "kills", "repeated", "unequal", "wrong")
    print("| trial | " + " | ".join(columns) + " |\n|---|" + "---|" * len(columns))
    for kind, counts in table.items():
        print(f"| {kind} | " + " | ".join(f"{counts[column]:,}" for column in columns) + " |")
    print("\n".join(later))
    sys.exit(any(counts["wrong"] for counts in table.values()))


TRIALS = {"faults": faults, "kill": kill, "nested": nested, "budget": budget, "broken": broken, "speed": speed}

if __name__ == "__main__":
    main()
