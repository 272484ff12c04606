"""The provider: every way a server can fail, through Inspect AI on the loopback interface."""

import asyncio
import builtins
import collections
import socket
import time

import pytest

from benchmarks.teacher_server import FAILURES, Manners, respond, serving
from msmjax.artifact import BadInput
from msmjax.corpus import provider
from msmjax.corpus.teacher import Teacher
from tests.asking import PROMPT, ask, journal, reply


@pytest.mark.parametrize("kind", FAILURES)
def test_a_failed_call_is_made_again_once(tmp_path, teacher_config, kind):
    """One failure, one call more: neither Inspect nor the SDK retries behind our back, and the ledger is the server's."""
    with serving(Manners({})) as (_, url):  # what the first call imports takes seconds
        ask(teacher_config(base_url=url), tmp_path / "before", [PROMPT])
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
    assert asked.journal.tokens == [sum(line[name] for line in whole) for name in ("input_tokens", "output_tokens")]
    assert len(journal(asked)) == len(whole) == 1
    assert seconds < 6  # Inspect's own wait before a second call is three seconds and more
    # What may be on the bill of a call without an answer is counted at its most.
    unknown = sum(line["input_tokens"] for line in server.books) - asked.journal.tokens[0]
    assert (asked._unknown[0] >= unknown > 0) == (kind in ("cut", "stall", "json", "choices"))
    assert (asked._unknown == [0, 0]) == (unknown == 0)


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
    assert [provider._seconds(text) for text in texts] == [None, None, 3.0, 1.5, 0.0, provider.LONGEST_ASKED, 0.0, 0.0]


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
