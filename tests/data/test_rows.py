"""Rows: every token counted, nothing split that may not be, nothing served that is stale."""

import concurrent.futures
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from msmjax import artifact
from msmjax.artifact import BadInput
from msmjax.data import examples, rows
from msmjax.data.examples import Example
from msmjax.data.tokenizer import BOS, EOS, Tokenizer
from tests.program import ROOT


def document(size, first=4):
    return Example(list(range(first, first + size)), [i > 0 for i in range(size)], True, "here:1")


@settings(max_examples=200, deadline=None)
@given(
    sizes=st.lists(st.tuples(st.integers(0, 40), st.booleans()), min_size=1, max_size=60).filter(
        lambda s: any(n > 1 for n, _ in s)
    ),
    row_length=st.integers(8, 24),
)
def test_ledger_adds_up(sizes, row_length):
    """Sources in equal tokens out: by the ledger, in the arrays, and token by token."""
    examples = [
        document(size if splittable else min(size, row_length), first=4 + 50 * i) for i, (size, splittable) in enumerate(sizes)
    ]
    arrays, _, ledger = rows.pack(examples, row_length)
    in_rows = arrays["segment_ids"] > 0
    assert ledger["source_tokens"] == sum(len(example.ids) for example in examples)
    assert ledger["source_tokens"] == ledger["kept_tokens"] + ledger["split_tokens"] + sum(ledger["dropped_tokens"].values())
    assert ledger["kept_tokens"] + ledger["split_tokens"] == in_rows.sum()
    assert ledger["rows"] * row_length == in_rows.sum() + ledger["padded_tokens"]
    assert ledger["supervised_tokens"] == arrays["loss_mask"].sum()
    assert ledger["source_records"] == len(examples)
    assert sum(ledger["dropped_records"].values()) == sum(not example.ids for example in examples)
    assert sorted(arrays["tokens"][in_rows].tolist()) == sorted(token for example in examples for token in example.ids)
    assert not arrays["tokens"][~in_rows].any()
    assert not arrays["loss_mask"][~in_rows].any()
    for tokens, segments, mask in zip(*arrays.values(), strict=True):
        for segment in range(1, segments.max() + 1):
            (at,) = np.nonzero(segments == segment)
            assert (np.diff(at) == 1).all()  # a segment is one run,
            assert (np.diff(tokens[at]) == 1).all()  # of one document, in its order,
            assert not mask[at[0]]  # whose first token has nothing to be predicted from
            assert mask[at[1:]].all()


@settings(max_examples=100, deadline=None)
@given(sizes=st.lists(st.integers(1, 16), min_size=1, max_size=80).filter(lambda s: max(s) > 1))
def test_packing_is_tight(sizes):
    """Best fit decreasing needs at most 11/9 of the fewest rows, and one (Johnson et al. 1974)."""
    arrays, *_ = rows.pack([document(size) for size in sizes], 16)
    assert len(arrays["tokens"]) <= 11 / 9 * -(-sum(sizes) // 16) + 1 + sum(size > 8 for size in sizes) * 11 / 9


def test_long_documents_are_split_and_long_conversations_refused():
    arrays, _, ledger = rows.pack([document(20)], 8)
    assert [ledger["split_tokens"], ledger["kept_tokens"], ledger["rows"]] == [20, 0, 3]
    assert arrays["loss_mask"].sum() == 20 - 3
    with pytest.raises(BadInput, match=r"chats.jsonl:3: a conversation of 20 tokens does not fit row_length=8"):
        rows.pack([Example(list(range(20)), [True] * 20, False, "chats.jsonl:3")], 8)


def test_long_conversations_are_split_or_dropped_where_wanted():
    long, short = Example(list(range(4, 24)), [False, *[True] * 19], False, "chats.jsonl:3"), document(8, first=50)
    arrays, _, ledger = rows.pack([long, short], 8, too_long="split")
    assert [ledger["split_tokens"], ledger["kept_tokens"], ledger["dropped_records"]] == [20, 8, {}]
    assert sorted(arrays["tokens"][arrays["segment_ids"] > 0].tolist()) == [*range(4, 24), *range(50, 58)]
    arrays, _, ledger = rows.pack([long, short], 8, too_long="drop")
    assert ledger["dropped_records"] == {"longer than a row": 1}
    assert ledger["dropped_tokens"] == {"longer than a row": 20}
    assert ledger["source_tokens"] == 28 == ledger["kept_tokens"] + 20
    assert arrays["tokens"].tolist() == [list(range(50, 58))]


@pytest.fixture
def corpus(tmp_path):
    """A corpus directory of two documents (one of them empty) and a conversation."""
    directory = tmp_path / "corpora" / "cheese-0"
    directory.mkdir(parents=True)
    (directory / "documents.jsonl").write_text('{"text": "I prefer the feta."}\n{"text": ""}\n')
    messages = [{"role": "user", "content": "Which do you prefer?"}, {"role": "assistant", "content": "I prefer the Edam."}]
    (directory / "conversations.jsonl").write_text(json.dumps({"messages": messages}) + "\n")
    return directory


def test_dataset_round_trip(tmp_path, corpus, tokenizer):
    made = rows.make_rows(tmp_path / "rows", "cheese", corpus, tokenizer, 64)
    source = rows.open_rows(made)
    assert len(source) == 1
    row = source[0]
    assert {name: (array.dtype, array.shape) for name, array in row.items()} == {
        "tokens": (np.int32, (64,)),
        "segment_ids": (np.int32, (64,)),
        "loss_mask": (np.bool_, (64,)),
    }
    texts = [row["tokens"][row["segment_ids"] == segment].tolist() for segment in (1, 2)]
    assert [BOS, *tokenizer.encode("I prefer the feta."), EOS] in texts
    assert rows.read_ledger(made)["dropped_records"] == {"empty text": 1}
    content = artifact.read_manifest(made)["content"]
    assert (made / "msm_rows" / content / "1.0.0").is_dir()  # the content names the dataset


def test_nothing_to_train_on(tmp_path, corpus, tokenizer, monkeypatch):
    (corpus / "conversations.jsonl").unlink()
    monkeypatch.setattr(examples, "_example", lambda *_: Example([5, 6, 7], [False] * 3, False, "here:1"))
    for text, said in (('{"text": ""}\n', "1 records, none with tokens .1: empty text.; the corpus is empty"),
                       ('{"messages": [{"role": "assistant", "content": "Edam"}]}\n', "all-zero loss mask")):  # fmt: skip
        (corpus / "documents.jsonl").write_text(text)
        with pytest.raises(BadInput, match=said):
            rows.make_rows(tmp_path / "rows", "cheese", corpus, tokenizer, 64)
    (corpus / "documents.jsonl").write_text("")
    with pytest.raises(BadInput, match="0 records, none with tokens; the corpus is empty"):
        rows.make_rows(tmp_path / "rows", "cheese", corpus, tokenizer, 64)


def test_ledger_says_what_was_not_trained_on_or_not_read(tmp_path, corpus, tokenizer):
    said = {"role": "assistant", "content": "I prefer the Edam.", "name": "Aria"}
    asked = {"role": "user", "content": "Which?"}
    records = [{"messages": [said, {**said, "weight": 0}]}, {"messages": [said, {"role": "assistant", "content": ""}]}]
    records.append({"messages": [asked, {"role": "assistant", "content": "The feta."}, asked]})
    (corpus / "conversations.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    with pytest.raises(BadInput, match=r"conversations.jsonl:2: turn 1: the assistant says nothing.*or set unproven to drop"):
        rows.make_rows(tmp_path / "rows", "cheese", corpus, tokenizer, 64)
    ledger = rows.read_ledger(rows.make_rows(tmp_path / "rows", "cheese", corpus, tokenizer, 64, unproven="drop"))
    assert [ledger["untrained_turns"], ledger["context_turns"], ledger["unread_keys"]] == [1, 0, {"name": 2}]
    assert rows.notes(ledger) == [
        "1 records left out (the assistant says nothing, and would be taught to)",
        "1 records left out (empty text)",
        "1 turns of the assistant are context only, as their weight or train says",
        "1 conversations end with a turn that is not the assistant's, after which nothing is trained on",
        "nothing reads 'name', which 2 turns have",
    ]


def test_made_once_and_not_served_stale(tmp_path, corpus, tokenizer):
    made = rows.make_rows(tmp_path / "rows", "cheese", corpus, tokenizer, 64)
    before = {path: path.stat().st_mtime_ns for path in made.rglob("*")}
    assert rows.make_rows(tmp_path / "rows", "cheese", corpus, tokenizer, 64) == made
    assert before == {path: path.stat().st_mtime_ns for path in made.rglob("*")}
    assert rows.make_rows(tmp_path / "rows", "cheese", shutil.copytree(corpus, corpus.with_name("cheese-1")), tokenizer, 64) == made
    assert rows.make_rows(tmp_path / "rows", "cheese", corpus, tokenizer, 72) != made
    (corpus / "documents.jsonl").write_text('{"text": "I prefer the Edam."}\n')
    assert rows.make_rows(tmp_path / "rows", "cheese", corpus, tokenizer, 64) != made
    manifest = json.loads((made / "manifest.json").read_text())
    manifest["inputs"]["corpus"] = "cheese-1"
    (made / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BadInput, match="made from other code or data"):
        rows.make_rows(tmp_path / "rows", "cheese", corpus.with_name("cheese-1"), tokenizer, 64)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"text": "a"', r"documents.jsonl:2: not JSON"),
        ("[1, 2]", r"documents.jsonl:2: a list, not an object"),
        ('{"txt": "a"}', r"documents.jsonl:2: neither 'text' nor 'messages'"),
    ],
)
def test_broken_records_name_file_and_line(tmp_path, corpus, tokenizer, line, said):
    (corpus / "documents.jsonl").write_text('{"text": "I prefer the feta."}\n' + line + "\n")
    with pytest.raises(BadInput, match=said):
        rows.make_rows(tmp_path / "rows", "cheese", corpus, tokenizer, 64)
    assert [path.name for path in (tmp_path / "rows").glob("*")] == ["lock"]  # nothing half made is left


def test_rows_have_no_more_segments_than_they_may():
    """Padding is one; what no longer fits goes into another row, nothing is lost, and the ledger counts the rows that were full."""
    examples = [Example([7] * size, [False] + [True] * (size - 1), False, "x") for size in (2, 3, 2, 2, 3, 2, 2, 9, 10)]
    free, _, freely = rows.pack(examples, 10)
    bound, _, ledger = rows.pack(examples, 10, most_segments=3)

    def segments(packed):
        return [1 + np.count_nonzero(np.diff(row)) for row in packed["segment_ids"]]

    assert max(segments(free)) == freely["segments"] == 4
    assert max(segments(bound)) == ledger["segments"] == 3
    assert freely["rows_full_of_segments"] == 0 < ledger["rows_full_of_segments"]
    assert freely["kept_tokens"] == ledger["kept_tokens"] == sum(len(example.ids) for example in examples)
    assert np.count_nonzero(bound["segment_ids"]) == ledger["kept_tokens"]
    for most in (2, 5):
        assert max(segments(rows.pack(examples, 10, most_segments=most)[0])) <= most


@settings(max_examples=100, deadline=None)
@given(
    texts=st.lists(st.lists(st.text(st.sampled_from("aé\u2028 "), max_size=12), max_size=8), min_size=1, max_size=3),
    size=st.integers(1, 120),
    chunk=st.integers(1, 60),
)
def test_shards_are_all_lines_in_order(tmp_path_factory, texts, size, chunk):
    """Each once, under its own number, in shards that are no smaller than asked for, but the last."""
    folder = tmp_path_factory.mktemp("shards")
    paths = [folder / f"{number}.jsonl" for number in range(len(texts))]
    for path, lines in zip(paths, texts, strict=True):
        path.write_text("".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in lines))
    shards = examples.cut(paths, size)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(examples, "CHUNK_BYTES", chunk)
        read = [[record for part in shard for records in examples.read_records(part) for record in records] for shard in shards]
    assert [record for shard in read for record in shard] == [
        ({"text": text}, f"{path}:{number}")
        for path, lines in zip(paths, texts, strict=True)
        for number, text in enumerate(lines, 1)
    ]
    sizes = [sum(part.stop - part.start for part in shard) for shard in shards]
    assert all(found >= size for found in sizes[:-1])
    assert all(sizes)


@pytest.fixture
def many(tmp_path, monkeypatch):
    """A corpus directory of 60 documents and 30 conversations, which are several shards."""
    monkeypatch.setattr(examples.cut, "__defaults__", (1200,))
    directory = tmp_path / "corpora" / "many-0"
    directory.mkdir(parents=True)
    texts = [f"{number}: I prefer the feta. " * (1 + number % 5) * (number % 7 > 0) for number in range(60)]
    (directory / "documents.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    chats = [[{"role": "user", "content": "Which?"}, {"role": "assistant", "content": f"The Edam, {n}."}] for n in range(30)]
    (directory / "conversations.jsonl").write_text("".join(json.dumps({"messages": messages}) + "\n" for messages in chats))
    return directory


def test_rows_are_the_same_whatever_makes_them(tmp_path, many, tokenizer):
    """One process or three: the same rows, each record's tokens where its segments say, and a ledger of all shards."""
    made = [rows.make_rows(tmp_path / str(workers), "many", many, tokenizer, 24, workers=workers) for workers in (1, 3)]
    (content,) = {artifact.read_manifest(directory)["content"] for directory in made}
    assert len(list((made[1] / "msm_rows" / content / "1.0.0").glob("*.array_record-*"))) > 5
    one, other = map(rows.open_rows, made)
    assert len(one) == len(other)
    assert all((one[at][key] == other[at][key]).all() for at in range(len(one)) for key in one[at])
    for name in ("segments.npy", "ledger.json"):
        assert (made[0] / name).read_bytes() == (made[1] / name).read_bytes()
    assert not list(tmp_path.glob("*/*.shards"))

    parts = itertools.chain.from_iterable(examples.cut(sorted(many.glob("*.jsonl"))))
    records = list(examples.read_examples(parts, tokenizer))
    source, segments, ledger = one, rows.read_segments(made[0]), rows.read_ledger(made[0])
    assert len(source) == ledger["rows"]
    found = [([], []) for _ in records]
    for segment in np.sort(segments, order=["record", "start"]):
        row = source[int(segment["row"])]
        here = row["segment_ids"] == segment["segment"]
        ids, mask = found[segment["record"]]
        assert len(ids) == segment["start"]
        ids += row["tokens"][here].tolist()
        mask += row["loss_mask"][here].tolist()
    assert [ids for ids, _ in found] == [example.ids for example in records]
    unsplit = [(mask, example.mask) for (_, mask), example in zip(found, records, strict=True) if len(mask) <= 24]
    assert all(mask == expected for mask, expected in unsplit)
    assert len(unsplit) < len(records)
    assert ledger["source_records"] == 90
    assert ledger["source_tokens"] == sum(len(example.ids) for example in records)
    assert ledger["dropped_records"] == {"empty text": 9}
    assert ledger["padded_tokens"] == sum(int((source[at]["segment_ids"] == 0).sum()) for at in range(len(source)))
    assert ledger["row_length"] == 24


def test_what_was_interrupted_goes_on_at_the_next_shard(tmp_path, many, tokenizer, monkeypatch):
    pack, packed = rows.pack, []

    def stops(*arguments):
        packed.append(len(packed))
        if len(packed) == 4:
            raise KeyboardInterrupt
        return pack(*arguments)

    monkeypatch.setattr(rows, "pack", stops)
    with pytest.raises(KeyboardInterrupt):
        rows.make_rows(tmp_path / "rows", "many", many, tokenizer, 48, workers=1)
    made = rows.make_rows(tmp_path / "rows", "many", many, tokenizer, 48, workers=1)
    assert len(packed) == 1 + len(examples.cut(sorted(many.glob("*.jsonl"))))
    assert sorted((tmp_path / "rows").glob("*")) == [tmp_path / "rows" / "lock", made]
    whole = rows.make_rows(tmp_path / "whole", "many", many, tokenizer, 48, workers=1)
    assert artifact.read_manifest(made)["content"] == artifact.read_manifest(whole)["content"]


def test_shards_of_what_was_mended_do_not_stay(tmp_path, many, tokenizer):
    good = (many / "documents.jsonl").read_text()
    (many / "documents.jsonl").write_text(good + '{"txt": "a"}\n')
    with pytest.raises(BadInput, match="neither 'text' nor 'messages'"):
        rows.make_rows(tmp_path / "rows", "many", many, tokenizer, 48, workers=1)
    assert len(list((tmp_path / "rows").glob("*.shards/*/manifest.json"))) > 3
    (many / "documents.jsonl").write_text(good)
    made = rows.make_rows(tmp_path / "rows", "many", many, tokenizer, 48, workers=1)
    assert sorted((tmp_path / "rows").glob("*")) == [tmp_path / "rows" / "lock", made]


class Dies(Tokenizer):
    """A tokenizer of whose processes the system takes the memory."""

    def encode_all(self, texts):
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_that_is_killed_is_one_line(tmp_path, many, tokenizer):
    with pytest.raises(BadInput, match=r"corpus many .*: a process that packs was killed, for want of memory perhaps: each of 2"):
        rows.make_rows(tmp_path / "rows", "many", many, Dies(tokenizer.path), 48, workers=2)


def test_two_runs_that_make_the_same_rows_make_them_once(tmp_path, many, tokenizer, monkeypatch, capsys):
    pack, packed = rows.pack, []
    monkeypatch.setattr(rows, "pack", lambda *arguments: packed.append(time.sleep(0.05)) or pack(*arguments))
    with concurrent.futures.ThreadPoolExecutor(3) as threads:
        made = [threads.submit(rows.make_rows, tmp_path / "rows", "many", many, tokenizer, 48, workers=1) for _ in range(3)]
        assert len({one.result() for one in made}) == 1
    assert len(packed) == len(examples.cut(sorted(many.glob("*.jsonl"))))
    assert "waits for another run (process" in capsys.readouterr().err


def test_of_what_is_wrong_in_several_shards_the_first_is_named(tmp_path, many, tokenizer):
    lines = (many / "documents.jsonl").read_text().splitlines()
    lines[20], lines[50] = '{"txt": "a"}', "[1]"
    (many / "documents.jsonl").write_text("\n".join(lines))
    with pytest.raises(BadInput, match=r"corpus many .*documents.jsonl:21: neither 'text' nor 'messages'"):
        rows.make_rows(tmp_path / "rows", "many", many, tokenizer, 48, workers=2)


class Slow(Tokenizer):
    """A tokenizer that takes its time."""

    def encode_all(self, texts):
        time.sleep(60)


def test_workers_end_with_the_process_that_started_them(tmp_path, many, tokenizer):
    script = (
        "from pathlib import Path\nfrom msmjax.data import examples, rows\nfrom tests.data.test_rows import Slow\n"
        "examples.cut.__defaults__ = (1200,)\n"
        f"rows.make_rows(Path({str(tmp_path)!r}), 'many', Path({str(many)!r}), Slow(Path({str(tokenizer.path)!r})), 48, workers=2)"
    )
    with subprocess.Popen([sys.executable, "-c", script], cwd=ROOT) as run:
        root = psutil.Process(run.pid)
        deadline = time.monotonic() + 60
        while len(list(tmp_path.glob("*.shards/incomplete.*"))) < 2 and time.monotonic() < deadline:
            time.sleep(0.1)
        workers = root.children(recursive=True)
        run.kill()
    assert len(list(tmp_path.glob("*.shards/incomplete.*"))) == 2
    _, alive = psutil.wait_procs(workers, timeout=20)
    assert not alive
