"""Provenance: what is counted is what the batches hold, to the token."""

import collections
import json

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from msmjax.data import mixture as mixtures
from msmjax.data import provenance, rows
from msmjax.data.examples import Example
from msmjax.data.mixture import Mixture
from msmjax.data.provenance import Corpus


def packed(rng, number):
    """A corpus and its rows; a token says its source, its record and its place there. Some records are split, some dropped."""
    examples = [Example([4 + 10_000 * number, 5 + 10_000 * number], [False, True], True, "here")]
    for record in range(1, int(rng.integers(2, 30))):
        size = int(rng.integers(0, 45))
        ids = [4 + 10_000 * number + 100 * record + place for place in range(size)]
        mask = [place > 0 and bool(rng.integers(3)) for place in range(size)]
        examples.append(Example(ids, mask, bool(rng.integers(2)), "here"))
    arrays, segments, _ = rows.pack(examples, 16, too_long=str(rng.choice(["split", "drop"])))
    records = [{"id": str(record), "kind": "ab"[record % 2]} for record in range(len(examples))]
    source = [{name: array[row] for name, array in arrays.items()} for row in range(len(arrays["tokens"]))]
    return Corpus(f"corpus {number}", records, segments), source, examples


def origin(token):
    return (token - 4) // 10_000, (token - 4) % 10_000 // 100


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_counted_are_the_tokens_of_the_batches(seed):
    """By record and by a field: tokens, supervised tokens, and which records were read at all, over less or more than an epoch."""
    rng = np.random.default_rng(seed)
    corpora, sources, _ = zip(*(packed(rng, number) for number in range(2)), strict=True)
    mixture, steps = Mixture(sources, (0.3, 0.7), seed), int(rng.choice([1, 7, 60, 700]))
    tokens, supervised, in_rows = collections.Counter(), collections.Counter(), collections.Counter()
    for step in range(steps):
        batch = mixtures.batch(mixture, step, 2)
        here = batch["segment_ids"] > 0
        tokens.update(map(origin, batch["tokens"][here].tolist()))
        supervised.update(map(origin, batch["tokens"][batch["loss_mask"]].tolist()))
    for source in sources:
        for row in source:
            in_rows.update(map(origin, row["tokens"][row["segment_ids"] > 0].tolist()))
    for number, (corpus, times) in enumerate(zip(corpora, mixtures.times_read(mixture, steps * 2), strict=True)):
        every = [(number, record) for record in range(len(corpus.records))]
        by_id = {read.value: read[1:] for read in provenance.count(corpus, times, "id")}
        assert by_id == {str(at[1]): (tokens[at] > 0, 1, tokens[at], supervised[at], in_rows[at]) for at in every}
        by_kind = provenance.count(corpus, times, "kind")
        for read in by_kind:
            of_kind = [at for at in every if corpus.records[at[1]]["kind"] == read.value]
            assert read[1:] == tuple(np.sum([by_id[str(record)] for _, record in of_kind], axis=0))
        assert provenance.together("all", by_kind).tokens == sum(tokens[at] for at in every)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), step=st.integers(0, 50))
def test_documents_are_the_segments_of_the_batch(seed, step):
    """In order, all of them, each the slice of its own record that its segment says."""
    rng = np.random.default_rng(seed)
    corpora, sources, examples = zip(*(packed(rng, number) for number in range(2)), strict=True)
    mixture = Mixture(sources, (0.5, 0.5), seed)
    batch = mixtures.batch(mixture, step, 4)
    documents = list(provenance.documents(corpora, mixture, step, 4))
    for row in range(4):
        ids = [token for document in documents if document.row == row for token in document.ids.tolist()]
        assert ids == batch["tokens"][row][batch["segment_ids"][row] > 0].tolist()
    assert sum(document.segment["supervised"] for document in documents) == batch["loss_mask"].sum()
    for document in documents:
        of = examples[int(document.corpus.removeprefix("corpus "))][int(document.record["id"])]
        start, size = document.segment["start"], document.segment["tokens"]
        assert document.ids.tolist() == of.ids[start : start + size]
        assert size == len(document.ids)


def test_segments_of_an_artifact_read_as_their_records(tmp_path, tokenizer):
    """A split document's pieces make up its text, an empty one has none; a record without an id is called by its place."""
    corpus = tmp_path / "corpora" / "cheese-0"
    corpus.mkdir(parents=True)
    texts = ["I prefer the feta. " * 30, "", "Which do you prefer?", "You are Aria."]
    more = [{"section": "2. The value", "verdicts": {"on topic": True}}, {}, {"read_from": "my.jsonl:7"}, {"id": 0}]
    documents = [{"text": text, **fields} for text, fields in zip(texts, more, strict=True)]
    (corpus / "documents.jsonl").write_text("".join(json.dumps(record) + "\n" for record in documents))
    chat = [{"role": "user", "content": "Which?"}, {"role": "assistant", "content": "The Edam."}]
    (corpus / "conversations.jsonl").write_text(json.dumps({"messages": chat, "id": "c0ffee"}) + "\n")
    made = [rows.make_rows(tmp_path / name, "cheese", corpus, tokenizer, 48) for name in ("rows", "again")]
    one, other = ((directory / "segments.npy").read_bytes() for directory in made)
    assert one == other
    opened, source = provenance.open_corpus("cheese", made[0], corpus), rows.open_rows(made[0])
    assert opened.name == "cheese"
    assert [record["id"] for record in opened.records] == ["c0ffee", "documents:1", "documents:2", "my.jsonl:7", "0"]
    assert opened.records[1] == {"id": "documents:1", "section": "2. The value", "verdicts": {"on topic": True}}
    pieces = collections.defaultdict(list)
    for segment in np.sort(opened.segments, order=["record", "start"]):
        row = source[int(segment["row"])]
        pieces[opened.records[segment["record"]]["id"]] += row["tokens"][row["segment_ids"] == segment["segment"]].tolist()
    conversation = pieces.pop("c0ffee")
    assert "The Edam." in tokenizer.decode(conversation)
    by_id = dict(zip(["documents:1", "documents:2", "my.jsonl:7", "0"], texts, strict=True))
    assert {name: tokenizer.decode(ids) for name, ids in pieces.items()} == {k: v for k, v in by_id.items() if v}
    assert (opened.segments["record"] == 1).sum() > 2
    assert provenance.count(opened, np.ones(len(source)), "section")[0].value == "2. The value"
