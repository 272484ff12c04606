"""Rows: every token counted, nothing split that may not be, nothing served that is stale."""

import json
import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from msmjax import artifact
from msmjax.artifact import BadInput
from msmjax.data import rows
from msmjax.data.rows import Example
from msmjax.data.tokenizer import BOS, EOS


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


def test_nothing_to_train_on():
    with pytest.raises(BadInput, match="the corpus is empty"):
        rows.pack([], 8)
    with pytest.raises(BadInput, match="all-zero loss mask"):
        rows.pack([Example([5, 6, 7], [False] * 3, True, "here:1")], 8)


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


def test_ledger_says_what_was_not_trained_on_or_not_read(tmp_path, corpus, tokenizer):
    said = {"role": "assistant", "content": "I prefer the Edam.", "name": "Aria"}
    records = [{"messages": [said, {**said, "weight": 0}]}, {"messages": [said, {"role": "assistant", "content": ""}]}]
    (corpus / "conversations.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    with pytest.raises(BadInput, match=r"conversations.jsonl:2: turn 1: the assistant says nothing.*or set unproven to drop"):
        rows.make_rows(tmp_path / "rows", "cheese", corpus, tokenizer, 64)
    ledger = rows.read_ledger(rows.make_rows(tmp_path / "rows", "cheese", corpus, tokenizer, 64, unproven="drop"))
    assert [ledger["untrained_turns"], ledger["context_turns"], ledger["unread_keys"]] == [1, 0, {"name": 2}]
    assert rows.notes(ledger) == [
        "1 records left out (the assistant says nothing, and would be taught to)",
        "1 records left out (empty text)",
        "1 turns of the assistant are context only, as their weight or train says",
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
    assert not list((tmp_path / "rows").glob("*"))  # nothing half made is left


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
