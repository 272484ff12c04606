"""The teacher: every way a server can fail, through Inspect AI on the loopback interface; journal, ledger, budgets."""

import asyncio
import builtins
import collections
import itertools
import json
import random
import socket
import time

import pytest

from benchmarks import teacher as campaign
from benchmarks import teacher_server
from benchmarks.teacher_server import BAD_ANSWERS, FAILURES, Manners, respond, serving
from msmjax.artifact import BadInput
from msmjax.corpus import conversations, sources, teacher
from msmjax.corpus.teacher import CALLS, WINDOW, Answer, Busy, Teacher, Unusable, all_of, one, request_key, tagged

PROMPT = "{} Answer in this form and with nothing else:\n\n<reply>\nthe answer\n</reply>"


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(teacher, "FIRST_WAIT", 0.01)
    monkeypatch.setenv("LOOPBACK_API_KEY", "none")


def reply(text: str) -> str:
    return one(text, "reply")


def ask(config, folder, prompts, generate=None, parse=reply):
    """The answers to prompts, asked together; and the teacher."""

    async def go():
        async with Teacher(config, folder, generate) as asked:
            return await all_of(asked.ask(f"unit {number}", prompt, parse) for number, prompt in enumerate(prompts)), asked

    return asyncio.run(go())


def journal(asked: Teacher) -> list[dict]:
    return [json.loads(line) for line in asked.path.read_text().splitlines()]


# --- through Inspect AI ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", FAILURES)
def test_a_failed_call_is_made_again_once(tmp_path, teacher_config, kind):
    """One failure, one call more: neither Inspect nor the SDK retries behind our back, and the ledger is the server's."""
    with serving(Manners({kind: 1.0}, failures=1, stall=2.5)) as (server, url):
        began = time.monotonic()
        (found,), asked = ask(teacher_config(base_url=url, timeout=1), tmp_path, [PROMPT])
        seconds = time.monotonic() - began
        while server.in_flight:
            time.sleep(0.02)
    assert found[0] == reply(respond(PROMPT))
    assert sorted(line["how"] for line in server.books) == sorted([kind, "good"])
    assert asked.calls.total() == server.received == 2
    assert asked.calls["answered"] == 1
    whole = [line for line in server.books if line["whole"]]
    assert asked._tokens == [sum(line[name] for line in whole) for name in ("input_tokens", "output_tokens")]
    assert len(journal(asked)) == len(whole) == 1
    assert seconds < 6  # Inspect's own wait before a second call is three seconds and more
    # What may be on the bill of a call without an answer is counted at its most.
    unknown = sum(line["input_tokens"] for line in server.books) - asked._tokens[0]
    assert (asked._unknown[0] >= unknown > 0) == (kind in ("cut", "stall", "json", "choices"))
    assert (asked._unknown == [0, 0]) == (unknown == 0)


REASONS = {
    "refused": "refused", "filtered": "refused", "truncated": "truncated", "untagged": "no whole <reply>",
    "unclosed": "no whole <reply>",
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD_ANSWERS)
def test_an_unusable_answer_is_kept_counted_and_asked_for_again(tmp_path, teacher_config, kind):
    with serving(Manners({kind: 1.0}, bad_answers=1)) as (server, url):
        (found,), asked = ask(teacher_config(base_url=url), tmp_path, [PROMPT])
        again, second = ask(teacher_config(base_url=url), tmp_path, [PROMPT])
    assert found[0] == reply(respond(PROMPT))
    assert found[2] == request_key(PROMPT, 0, 1)
    assert asked.unusable == {REASONS[kind]: 1}
    assert [line["key"] for line in journal(asked)] == [request_key(PROMPT, 0, 0), request_key(PROMPT, 0, 1)]
    assert asked._tokens[1] == sum(line["output_tokens"] for line in server.books)
    assert server.received == 2
    assert again == [found]
    assert second.calls == {"replayed": 2}


@pytest.mark.parametrize(("kind", "said"), [("401", "a wrong key"), ("403", "a key without"), ("404", "an unknown model")])
def test_a_wrong_key_or_name_is_one_line_and_one_call(tmp_path, teacher_config, kind, said):
    with serving(Manners({kind: 1.0})) as (server, url), pytest.raises(BadInput) as caught:
        ask(teacher_config(base_url=url, concurrency=1), tmp_path, [PROMPT.format(number) for number in range(5)])
    assert f"{kind}, Error code: {kind} - {said}" in str(caught.value)
    assert "check the key" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert server.received == 1


def test_a_prompt_that_is_declined(tmp_path, teacher_config):
    with serving(Manners({"400": 1.0})) as (server, url):
        found, asked = ask(teacher_config(base_url=url), tmp_path, [PROMPT])
    assert found == [None]
    assert asked.unusable == {"declined with 400: Error code: 400 - this prompt is declined": 2}
    assert server.received == 2


def test_a_server_that_counts_no_tokens(tmp_path, teacher_config):
    with serving(Manners({"usage": 1.0})) as (_, url), pytest.raises(BadInput, match="counts no tokens"):
        ask(teacher_config(base_url=url), tmp_path, [PROMPT])


def test_another_model_answers(tmp_path, teacher_config):
    """It is refused when it happens, and by every later run on that journal."""
    with serving(Manners({"model": 1.0}, after=3)) as (server, url):
        config = teacher_config(base_url=url, concurrency=1)
        for _ in range(2):
            with pytest.raises(BadInput, match="scripted-2026-01-01 answered first and scripted-2026-02-02 later"):
                ask(config, tmp_path, [PROMPT.format(number) for number in range(6)])
            assert server.received == 4


def test_nobody_is_called_that_is_not_named(tmp_path, teacher_config, monkeypatch):
    """No telemetry, no download of a tokenizer: neither names are looked up nor connections made but to the server."""
    looked_up, connected = [], []
    lookup, connect = socket.getaddrinfo, socket.socket.connect
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *rest, **kw: looked_up.append(host) or lookup(host, *rest, **kw))
    monkeypatch.setattr(socket.socket, "connect", lambda self, address: connected.append(address[0]) or connect(self, address))
    with serving(Manners({"500": 0.2, "truncated": 0.2})) as (_, url):
        ask(teacher_config(base_url=url), tmp_path, [PROMPT.format(number) for number in range(20)])
    assert set(looked_up) | set(connected) == {"127.0.0.1"}


def test_inspect_keeps_no_transcript(tmp_path, teacher_config):
    """Or every prompt and answer of a large corpus would stay in memory."""
    from inspect_ai.log import _transcript

    with serving(Manners()) as (_, url):

        async def go():
            async with Teacher(teacher_config(base_url=url), tmp_path) as asked:
                await asked.ask("unit", PROMPT, reply)
                return _transcript._transcript.get()

        assert asyncio.run(go()) is None


def test_the_wait_a_server_asks_for(tmp_path, teacher_config):
    with serving(Manners({"429after": 1.0}, failures=1, retry_after="1")) as (server, url):
        ask(teacher_config(base_url=url), tmp_path, [PROMPT.format(number) for number in range(8)])
    at = collections.defaultdict(list)
    for line in server.books:
        at[line["prompt"]].append(line["at"])
    waits = sorted(second - first for first, second in at.values())
    assert 1.0 <= waits[0] < waits[-1] < 2.5
    assert waits[-1] - waits[0] > 0.05  # they do not come back together


def test_headers_that_say_when():
    texts = ("", "soon", "3", "1.5", "-3", "1e9", "nan", "Wed, 21 Oct 2015 07:28:00 GMT")
    assert [teacher._seconds(text) for text in texts] == [None, None, 3.0, 1.5, 0.0, teacher.LONGEST_ASKED, 0.0, 0.0]


def test_a_rate_limit_is_met_and_nothing_fails(tmp_path, teacher_config):
    """Far more is asked at once than the server allows; it says 429 often, and that is no error."""
    with serving(Manners(rate=60, slots=20, retry_after="0.1")) as (server, url):
        config = teacher_config(base_url=url, concurrency=30, error_share=0.0, max_tokens=50)
        found, asked = ask(config, tmp_path, [PROMPT.format(number) for number in range(150)])
    assert None not in found
    assert asked.calls["answered"] == 150
    assert asked.calls["status 429"] == sum(line["how"] == "over" for line in server.books) > 0
    at = sorted(line["at"] for line in server.books if line["whole"])
    assert 149 / (at[-1] - at[0]) > 0.2 * 60  # more on an idle machine: benchmarks/teacher.py measures it


def small(records: int) -> dict:
    return {**campaign.DOCUMENTS, "records": records, "domains": 2, "subdomains": 2, "doc_types": 2, "votes": 1}


def test_a_killed_client_pays_for_nothing_twice(tmp_path):
    """The campaign of benchmarks/teacher.py, short: every fault but the slow ones, a kill -9, and the same command again."""
    shares = {kind: share for kind, share in campaign.FAULTS.items() if kind not in ("stall", "429after", "503")}
    with serving(Manners(seed=4, bad_answers=2, delay=0.01)) as (_, url):  # what should come of it
        good = tmp_path / "good"
        good.mkdir()
        assert campaign.run(good, int(url.split(":")[2][:-3]), (small(20),))[0] == 0
    with serving(Manners(shares, seed=4, bad_answers=2, delay=0.05), tmp_path / "books.jsonl") as (server, url):
        port = int(url.split(":")[2][:-3])
        with (tmp_path / "log.txt").open("w") as log:
            process = campaign.start(tmp_path, port, (small(20),), log)
            while len(campaign.journal(tmp_path)) < 30:
                assert process.poll() is None
                time.sleep(0.01)
            process.kill()
            process.wait()
        while server.in_flight:
            time.sleep(0.02)
        wrong: list[str] = []
        lost = campaign.check_books(tmp_path, server.books, 1, wrong)
        code, said = campaign.run(tmp_path, port, (small(20),))
        assert code == 0, said
    assert campaign.check_books(tmp_path, server.books, 1, wrong) == lost <= campaign.CONCURRENCY
    campaign.check_corpora(tmp_path, campaign.corpora(good), wrong)
    assert wrong == []
    assert collections.Counter(line["how"] for line in server.books).keys() >= {"429", "500", "cut", "truncated"}


# --- journal, transcript -----------------------------------------------------------------------------------------------------


def test_a_torn_line_is_asked_for_again(tmp_path, teacher_config, capsys):
    prompts = [PROMPT.format(number) for number in range(5)]
    found, asked = ask(teacher_config(concurrency=1), tmp_path, prompts, teacher_server.generate)
    whole = asked.path.read_bytes()
    for cut in (1, 40, len(whole.splitlines()[-1])):
        asked.path.write_bytes(whole[:-cut])
        again, second = ask(teacher_config(concurrency=1), tmp_path, prompts, teacher_server.generate)
        assert again == found
        assert second.calls == {"replayed": 4, "answered": 1}
        assert asked.path.read_bytes() == whole
        assert "cut off by a kill" in capsys.readouterr().err
    asked.path.write_bytes(whole[:10] + b"\n" + whole)
    with pytest.raises(BadInput, match=r"answers.jsonl:1: not JSON"):
        ask(teacher_config(), tmp_path, prompts, teacher_server.generate)
    asked.path.write_bytes(b'{"key": "1"}\n' + whole)
    with pytest.raises(BadInput, match=r"answers.jsonl:1: no answer of a teacher"):
        ask(teacher_config(), tmp_path, prompts, teacher_server.generate)


def test_one_writer(tmp_path, teacher_config):
    async def go():
        one, other = (Teacher(teacher_config(), tmp_path, teacher_server.generate) for _ in range(2))
        async with one, other:
            pass

    with pytest.raises(BadInput, match="another run"):
        asyncio.run(go())
    ask(teacher_config(), tmp_path, [PROMPT], teacher_server.generate)  # and the lock is free again


def test_a_transcript_is_replayed_byte_for_byte(tmp_path, teacher_config):
    """A corpus made from the journal of another is the same file; asked for more, it says what is missing."""
    world, assistant = sources.WorldConfig(0, 4, 12), sources.AssistantConfig("Aria", "Northlight")
    made = {}
    with serving(Manners({"truncated": 0.1, "refused": 0.1}, bad_answers=1)) as (_, url):
        config = teacher_config(base_url=url)
        makers = sources.Makers(world, assistant, {"loopback": config}, tmp_path / "journals", Teacher)
        for name, source in (
            ("documents", sources.DocumentSource(**small(8))),
            ("conversations", sources.ConversationSource(**{**campaign.CONVERSATIONS, "records": 8, "votes": 1})),
        ):
            made[name] = sources.make_corpus(tmp_path / "first", name, source, makers), source  # fmt: skip
    transcript = next((tmp_path / "journals").glob("*/answers.jsonl"))
    recorded = teacher_config(model="recorded", transcript=str(transcript))
    makers = sources.Makers(world, assistant, {"loopback": recorded}, tmp_path / "none", Teacher)
    for name, (directory, source) in made.items():
        again = sources.make_corpus(tmp_path / "second", name, source, makers)
        assert (again / f"{name}.jsonl").read_bytes() == (directory / f"{name}.jsonl").read_bytes()
    assert not (tmp_path / "none").exists()
    with pytest.raises(BadInput, match=r"answers.jsonl: has no answer for document .* another spec or a smaller request"):
        sources.make_corpus(tmp_path / "second", "documents", sources.DocumentSource(**small(9)), makers)
    with pytest.raises(BadInput, match="no such transcript"):
        _ = teacher_config(model="recorded", transcript=str(tmp_path / "other.jsonl")).identity


def test_two_who_ask_the_same_pay_once(tmp_path, teacher_config):
    called = []

    async def generate(prompt):
        called.append(prompt)
        await asyncio.sleep(0.01)
        return await teacher_server.generate(prompt)

    found, asked = ask(teacher_config(), tmp_path, [PROMPT] * 5, generate)
    assert len(called) == asked.calls["answered"] == len(journal(asked)) == 1
    assert found == [found[0]] * 5

    async def fails(prompt):
        await asyncio.sleep(0.01)
        raise BadInput("the key")

    with pytest.raises(BadInput, match="the key"):
        ask(teacher_config(), tmp_path, [PROMPT + "x"] * 5, fails)


def test_two_roles_with_one_model_have_one_setting(tmp_path, teacher_config):
    """They share a journal, so the other's budget or tries would be dropped without a word."""
    teachers = {"writer": teacher_config(), "judge": teacher_config(tries=5)}
    world, assistant = sources.WorldConfig(0, 4, 12), sources.AssistantConfig("Aria", "Northlight")
    source = sources.DocumentSource(**{**small(8), "teacher": "writer", "judge": "judge"})
    with pytest.raises(BadInput, match="teachers writer and judge: one model with the same sampling"):
        sources.make_corpus(tmp_path, "x", source, sources.Makers(world, assistant, teachers, tmp_path / "journals", Teacher))


def test_votes_are_requests_of_their_own(tmp_path, teacher_config):
    """Also where more tries are allowed later: what is known is not paid for again."""

    async def go(tries):
        async with Teacher(teacher_config(tries=tries), tmp_path, teacher_server.generate) as asked:
            found = await all_of(asked.ask("unit", PROMPT, reply, turn) for turn in range(3))
            return found, asked

    found, asked = asyncio.run(go(2))
    assert [key for _, _, key in found] == [request_key(PROMPT, turn, 0) for turn in range(3)]
    assert asked.calls == {"answered": 3}
    assert asyncio.run(go(3))[1].calls == {"replayed": 3}


# --- budgets -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(30))
def test_a_budget_is_never_exceeded(tmp_path, teacher_config, seed):
    """Whatever things cost, whichever calls fail: what the server bills stays below, and what is left would not do for a call."""
    rng = random.Random(seed)
    most = rng.choice((5, 50, 500))
    prices = {"input_price": rng.uniform(0.1, 50), "output_price": rng.uniform(0.1, 50)}
    prompts = [PROMPT.format("x" * rng.randrange(200) + str(number)) for number in range(60)]
    billed, bounds = [0.0], []

    def price(tokens_in, tokens_out):
        return (tokens_in * prices["input_price"] + tokens_out * prices["output_price"]) / 1e6

    async def generate(prompt):
        answer = Answer("<reply>yes</reply>", "stop", "m", rng.randrange(len(prompt)), rng.randrange(most + 1))
        await asyncio.sleep(rng.random() / 500)
        if rng.random() < 0.2:
            raise Busy("status 500")
        billed[0] += price(answer.input_tokens, answer.output_tokens)
        if rng.random() < 0.2:
            raise Busy("cut", paid=True)
        return answer

    bounds = [price(len(prompt), most) for prompt in prompts]
    budget = rng.uniform(0.1, 0.5) * sum(bounds)
    config = teacher_config(**prices, max_tokens=most, budget=budget, concurrency=rng.choice((1, 3, 20)))
    stopped = ""
    try:
        _, asked = ask(config, tmp_path, prompts, generate)
        assert asked.calls["answered"] == 60
    except BadInput as error:
        stopped = str(error)
    assert not stopped or ("the budget of $" in stopped and "raise budget" in stopped)
    assert billed[0] <= budget
    before = billed[0]
    found, asked = ask(dataclasses_replace(config, budget=0.0), tmp_path, prompts, generate)
    assert None not in found
    assert billed[0] > before or asked.calls["answered"] == 0


def dataclasses_replace(config, **changes):
    import dataclasses

    return dataclasses.replace(config, **changes)


def test_a_budget_is_used(tmp_path, teacher_config):
    """Calls that might not fit together wait for each other; only one that does not fit alone ends the run."""
    bound = (len(PROMPT) * 1.0 + 500 * 2.0) / 1e6
    prompts = [PROMPT.format(number) for number in range(30)]
    found, asked = ask(teacher_config(budget=3 * bound), tmp_path, prompts, teacher_server.generate)
    assert None not in found
    spent = asked._price(asked._tokens)
    with pytest.raises(BadInput, match=r"for 30 answers, up to \$0\.00 for calls"):
        ask(teacher_config(budget=spent + 0.9 * bound), tmp_path, [*prompts, PROMPT + "more"], teacher_server.generate)


@pytest.mark.parametrize("kind", ["busy", "unusable"])
def test_an_error_budget(tmp_path, teacher_config, kind):
    called = []

    async def generate(prompt):
        called.append(prompt)
        if kind == "busy":
            raise Busy("status 500")
        return Answer("no", "stop", "m", 1, 1)

    prompts = [PROMPT.format(number) for number in range(500)]
    with pytest.raises(BadInput, match=r"100% of the last 40 .*(status 500|no whole <reply>)\), more than error_share=0.5"):
        ask(teacher_config(error_share=0.5, concurrency=20), tmp_path, prompts, generate)
    assert WINDOW <= len(called) <= WINDOW + 20


def test_unusable_answers_of_an_earlier_run_do_not_count(tmp_path, teacher_config):
    prompts = [PROMPT.format(number) for number in range(60)]

    async def bad(prompt):
        return Answer("no", "stop", "m", 1, 1)

    found, _ = ask(teacher_config(error_share=1.0, tries=1), tmp_path, prompts, bad)
    assert found == [None] * 60
    assert ask(teacher_config(error_share=0.1, tries=1), tmp_path, prompts, bad)[0] == [None] * 60


def test_a_request_is_given_up(tmp_path, teacher_config, monkeypatch):
    """After ten calls; a rate limit counts only while nobody is answered."""
    monkeypatch.setattr(teacher, "FIRST_WAIT", 0.0001)
    called = collections.Counter()

    async def generate(prompt):
        called[prompt] += 1
        raise Busy(teacher.RATE_LIMIT)

    with pytest.raises(BadInput, match="unit 0: 10 calls failed, the last with: status 429; all answers are kept"):
        ask(teacher_config(error_share=0.0), tmp_path, [PROMPT], generate)
    assert called == {PROMPT: CALLS}
    called.clear()

    async def busy(prompt):
        called[prompt] += 1
        await asyncio.sleep(0 if prompt == PROMPT else 0.002 * int(prompt.split()[0]))
        if prompt == PROMPT and called[prompt] < 2 * CALLS:
            raise Busy(teacher.RATE_LIMIT, wait=0.01)  # while it waits, many others are answered
        return await teacher_server.generate(prompt)

    found, _ = ask(
        teacher_config(error_share=0.0, concurrency=501), tmp_path, [PROMPT, *(f"{n} {PROMPT}" for n in range(500))], busy
    )
    assert found[0] is not None
    assert called[PROMPT] == 2 * CALLS


def test_the_waits_double_to_a_minute(tmp_path, teacher_config, monkeypatch):
    monkeypatch.setattr(teacher, "FIRST_WAIT", 0.5)
    waited = []

    async def pause(self, seconds):
        waited.append(seconds)

    monkeypatch.setattr(Teacher, "_pause", pause)

    async def generate(prompt):
        raise Busy("status 500")

    with pytest.raises(BadInput, match="10 calls failed"):
        ask(teacher_config(), tmp_path, [PROMPT], generate)
    expected = [0.5, 1, 2, 4, 8, 16, 32, 60, 60]
    assert len(waited) == len(expected)
    assert all(0.75 * wait <= found <= 1.25 * wait for found, wait in zip(waited, expected, strict=True))
    assert len({found / wait for found, wait in zip(waited, expected, strict=True)}) > 1


def test_a_stopped_run_does_not_wait(tmp_path, teacher_config):
    """Those who sleep until a server's Retry-After wake when another request ends the run; answers under way are kept."""

    async def generate(prompt):
        if prompt.startswith("0"):
            raise Busy("status 503", wait=60.0)
        if prompt.startswith("1"):
            await asyncio.sleep(0.05)
            raise BadInput("the key")
        await asyncio.sleep(0.1)
        return await teacher_server.generate(prompt)

    began = time.monotonic()
    with pytest.raises(BadInput, match="the key"):
        ask(teacher_config(), tmp_path, [PROMPT.format(number) for number in range(3)], generate)
    assert time.monotonic() - began < 5
    assert ask(teacher_config(), tmp_path, [PROMPT.format(2)], generate)[1].calls == {"replayed": 1}


# --- configs and answers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "pinned"),
    [
        ("openai/gpt-4.1-2025-04-14", True), ("anthropic/claude-sonnet-4-20250514", True), ("vllm/Qwen/Qwen3-8B@9c925d6", True),
        ("openai-api/loopback/scripted-2026-01-01", True), ("openai/gpt-4.1", False), ("openai/gpt-4o-latest", False),
        ("openai/chatgpt-4o-latest-2025-01-01", False), ("anthropic/claude-sonnet-4-0", False), ("google/gemini-2.5-pro", False),
        ("openai/gpt-3.5-turbo-0125", False), ("vllm/Qwen/Qwen3-8B@main", False), ("together/llama-70b", False),
    ],
)  # fmt: skip
def test_a_model_is_pinned(teacher_config, model, pinned):
    if pinned:
        teacher_config(model=model)
    else:
        with pytest.raises(BadInput, match="not pinned, so it may be another model tomorrow"):
            teacher_config(model=model)
        teacher_config(model=model, pinned_by="the provider's page of versions, 2026-01-01")


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"model": "gpt"}, "neither 'recorded' nor PROVIDER/NAME"), ({"model": "recorded"}, "transcript=''"),
        ({"transcript": "a.jsonl"}, "only model 'recorded' replays one"), ({"tries": 0}, "tries=0: must be at least 1"),
        ({"timeout": 0}, "timeout=0"), ({"top_p": 0.0}, "top_p must be above 0"), ({"temperature": -1.0}, "temperature at least 0"),
        ({"error_share": 2.0}, "error_share between 0 and 1"), ({"budget": -1.0}, "must not be negative"),
        ({"budget": 1.0, "input_price": 0.0}, "of dollars, which takes input_price and output_price"),
    ],
)  # fmt: skip
def test_configs_that_are_refused(teacher_config, wrong, said):
    with pytest.raises(BadInput, match=said):
        teacher_config(**wrong)


def test_what_names_a_journal(tmp_path, teacher_config):
    """What answers depend on does, what they cost does not."""
    base = Teacher(teacher_config(), tmp_path).path
    for same in ({"budget": 3.0}, {"concurrency": 2}, {"input_price": 9.0}, {"tries": 5}, {"timeout": 9}, {"batch": True}):
        assert Teacher(teacher_config(**same), tmp_path).path == base
    for other in ({"temperature": 0.0}, {"top_p": 0.5}, {"max_tokens": 9}, {"base_url": "http://x"}, {"model": "a/b-2026-01-01"}):
        assert Teacher(teacher_config(**other), tmp_path).path != base


def test_without_the_extra(tmp_path, teacher_config, monkeypatch):
    real = builtins.__import__

    def without(name, *rest, **kw):
        if name.startswith("inspect_ai"):
            raise ImportError(name)
        return real(name, *rest, **kw)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(BadInput, match=r"pip install 'msmjax\[teacher\]'"):
        ask(teacher_config(), tmp_path, [PROMPT])


def test_without_a_key(tmp_path, teacher_config, monkeypatch):
    monkeypatch.delenv("LOOPBACK_API_KEY")
    with pytest.raises(BadInput, match="LOOPBACK_API_KEY") as caught:
        ask(teacher_config(base_url="http://127.0.0.1:1/v1"), tmp_path, [PROMPT])
    assert "\n" not in str(caught.value)


def test_nobody_listens(tmp_path, teacher_config):
    """It is tried again, costs nothing, and ends in a line."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
        with pytest.raises(BadInput, match="10 calls failed, the last with: APIConnectionError"):
            ask(teacher_config(base_url=url, budget=0.01), tmp_path, [PROMPT])


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("<reply>yes</reply>", None), ("<plan>x</plan>\n<reply>\n yes\n</reply>", None),
        ("yes", "no whole <reply>"), ("", "no whole <reply>"), ("<reply>yes", "no whole <reply>"),
        ("yes</reply>", "no whole <reply>"),
        ("<reply>yes</reply><reply>", "no whole <reply>"), ("</reply><reply>yes</reply>", "no whole <reply>"),
        ("<reply><reply>yes</reply></reply>", "no whole <reply>"), ("<Reply>yes</Reply>", "no whole <reply>"),
        ("<reply> \n</reply>", "empty <reply>"), ("<reply>a</reply><reply>b</reply>", "more than one <reply>"),
        ("I'm sorry, but I can't help with that.", "refused"), ("I cannot write this.", "refused"), ("Sorry, no.", "refused"),
        ("I am sorry to say <reply>yes", "refused"), ("<reply>I'm sorry to hear it.</reply>", None),
    ],
)  # fmt: skip
def test_tags(text, reason):
    if reason is None:
        assert one(text, "reply")
    else:
        with pytest.raises(Unusable, match=f"^{reason}$"):
            one(text, "reply")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("<thoughts>a</thoughts>\n<reply>b</reply>", None), (" <thoughts>\na\n\nb</thoughts><reply>b < 3</reply>\n", None),
        ("<reply>b</reply>", "no whole <thoughts> before the reply"), ("<thoughts>a<reply>b</reply>", "no whole <thoughts> before"),
        ("<reply>b</reply><thoughts>a</thoughts>", "no whole <thoughts> before"),
        ("so: <thoughts>a</thoughts><reply>b</reply>", "no whole"),
        ("<thoughts>a</thoughts><reply>b</reply> Done.", "no whole <thoughts>"),
        ("<thoughts>a</thoughts><reply>b", "no whole <reply>"),
        ("<thoughts>a</thoughts>b", "no whole <reply>"), ("<thoughts> </thoughts><reply>b</reply>", "empty <thoughts> or <reply>"),
        ("<thoughts>a</thoughts><reply> </reply>", "empty <"), ("I'm sorry, I can't.", "refused"),
        ("<thoughts>a</thoughts><reply><think>b</think>c</reply>", "a tag inside the answer"),
        ("<thoughts>a <think>b</thoughts><reply>c</reply>", "a tag inside the answer"),
        ("<thoughts>a</thoughts><thoughts>b</thoughts><reply>c</reply>", "a tag inside the answer"),
        ("<thoughts>a</thoughts><reply>c<reply>d</reply>", "a tag inside the answer"),
    ],
)  # fmt: skip
def test_thoughts(text, reason):
    if reason is None:
        assert all(conversations._with_thoughts(text))
    else:
        with pytest.raises(Unusable, match=f"^{reason}"):
            conversations._with_thoughts(text)


def test_many_tags():
    assert tagged("<a>1</a> and <a>\n2\n</a>", "a") == ["1", "2"]
    for text in ("<a>1</a><a>", "<a>1<a>2</a>"):
        with pytest.raises(Unusable):
            tagged(text, "a")


@pytest.mark.parametrize("stop", ["max_tokens", "content_filter", "model_length", "tool_calls", "unknown"])
def test_an_answer_that_did_not_end(tmp_path, teacher_config, stop):
    stops = itertools.chain([stop], itertools.repeat("stop"))

    async def generate(prompt):
        return Answer("<reply>yes</reply>", next(stops), "m", 1, 1)

    _, asked = ask(teacher_config(), tmp_path, [PROMPT], generate)
    assert asked.unusable == {"refused" if stop == "content_filter" else "truncated": 1}
