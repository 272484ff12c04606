"""The teacher: what it asks again, what it pays for once; ledger and budgets."""

import asyncio
import collections
import random
import time

import pytest

from benchmarks import teacher_server
from benchmarks.teacher_server import BAD_ANSWERS, Manners, respond, serving
from msmjax.artifact import BadInput
from msmjax.corpus import sources, teacher
from msmjax.corpus.answer import Answer
from msmjax.corpus.journal import request_key
from msmjax.corpus.provider import Busy
from msmjax.corpus.teacher import CALLS, WINDOW, Teacher, all_of
from tests.asking import PROMPT, ask, journal, reply, small

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
    assert asked.journal.tokens[1] == sum(line["output_tokens"] for line in server.books)
    assert server.received == 2
    assert again == [found]
    assert second.calls == {"replayed": 2}


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


@pytest.mark.parametrize("seed", range(30))
def test_a_budget_is_never_exceeded(tmp_path, teacher_config, monkeypatch, seed):
    """Whatever things cost, whichever calls fail: what the server bills stays below, and what is left would not do for a call."""
    monkeypatch.setattr(teacher, "CALLS", 100)  # of so many requests one fails ten times, sooner or later
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
    spent = asked._price(asked.journal.tokens)
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
        if prompt == PROMPT and called[prompt] < 2 * CALLS:
            raise Busy(teacher.RATE_LIMIT, wait=0.05)  # while it waits, 25 others are answered
        while prompt != PROMPT and called[PROMPT] <= int(prompt.split()[0]) // 25:
            await asyncio.sleep(0.001)
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
