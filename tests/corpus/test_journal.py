"""The journal: torn lines, one writer, one model; and its replay as a transcript."""

import asyncio
import collections
import time

import pytest

from benchmarks import teacher as campaign
from benchmarks import teacher_server
from benchmarks.teacher_server import Manners, serving
from msmjax.artifact import BadInput
from msmjax.corpus import sources
from msmjax.corpus.teacher import Teacher
from tests.asking import PROMPT, ask, small


def test_a_torn_line_is_asked_for_again(tmp_path, teacher_config, capsys):
    prompts = [PROMPT.format(number) for number in range(5)]
    found, asked = ask(teacher_config(concurrency=1), tmp_path, prompts, teacher_server.generate)
    whole = asked.journal.path.read_bytes()
    for cut in (1, 40, len(whole.splitlines()[-1])):
        asked.journal.path.write_bytes(whole[:-cut])
        again, second = ask(teacher_config(concurrency=1), tmp_path, prompts, teacher_server.generate)
        assert again == found
        assert second.calls == {"replayed": 4, "answered": 1}
        assert asked.journal.path.read_bytes() == whole
        assert "cut off by a kill" in capsys.readouterr().err
    asked.journal.path.write_bytes(whole[:10] + b"\n" + whole)
    with pytest.raises(BadInput, match=r"answers.jsonl:1: not JSON"):
        ask(teacher_config(), tmp_path, prompts, teacher_server.generate)
    asked.journal.path.write_bytes(b'{"key": "1"}\n' + whole)
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


def test_another_model_answers(tmp_path, teacher_config):
    """It is refused when it happens, and by every later run on that journal."""
    with serving(Manners({"model": 1.0}, after=3)) as (server, url):
        config = teacher_config(base_url=url, concurrency=1)
        for _ in range(2):
            with pytest.raises(BadInput, match="scripted-2026-01-01 answered first and scripted-2026-02-02 later"):
                ask(config, tmp_path, [PROMPT.format(number) for number in range(6)])
            assert server.received == 4


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


def test_what_names_a_journal(tmp_path, teacher_config):
    """What answers depend on does, what they cost does not."""
    base = Teacher(teacher_config(), tmp_path).journal.path
    for same in ({"budget": 3.0}, {"concurrency": 2}, {"input_price": 9.0}, {"tries": 5}, {"timeout": 9}, {"batch": True}):
        assert Teacher(teacher_config(**same), tmp_path).journal.path == base
    for other in ({"temperature": 0.0}, {"top_p": 0.5}, {"max_tokens": 9}, {"base_url": "http://x"}, {"model": "a/b-2026-01-01"}):
        assert Teacher(teacher_config(**other), tmp_path).journal.path != base
