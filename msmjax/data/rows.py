"""Rows: records packed offline into fixed-length arrays, stored as a TFDS dataset, with a ledger of every token.

In: JSONL files of records. Out: an artifact directory with an `array_record` dataset of `tokens`, `segment_ids`, `loss_mask`
(each [T]), `segments.npy` (which record each segment is of), and `ledger.json`. Segments count from 1 within a row; 0 is
padding. `loss_mask` marks the tokens that are predicted; the first token of a segment has nothing to be predicted from and is
never marked.
"""

import bisect
import collections
import contextlib
import dataclasses
import itertools
import json
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

import numpy as np

from msmjax import artifact
from msmjax.artifact import BadInput
from msmjax.data import chat
from msmjax.data.chat import Unproven
from msmjax.data.tokenizer import PAD, ROLES, AnyTokenizer, is_trained

TOO_LONG = ("refuse", "split", "drop")  # what becomes of a conversation that is longer than a row
UNPROVEN = ("refuse", "drop")  # and of one whose loss mask cannot be proven

# A segment: the row it is in and its number there; the record it is of, counted over the corpus's files in order; where in that
# record's tokens it starts; how many tokens it has, and how many of them are supervised.
SEGMENT = np.dtype([(name, np.int32) for name in ("row", "segment", "record", "start", "tokens", "supervised")])


@dataclasses.dataclass(frozen=True)
class Example:
    """One record as tokens; `splittable` for documents, which may run on in another row (chats may not).

    `context_turns` counts turns of the assistant that are not supervised (data/proof.py says when), `moved_openers` those whose
    thinking had space before it, `untrained_turns` those that `weight` or `train` make context, `unread` the turns with a key that
    nothing reads. One that is `left_out` has no tokens, and the reason there.
    """

    ids: list[int]
    mask: list[bool]
    splittable: bool
    where: str
    context_turns: int = 0
    moved_openers: int = 0
    untrained_turns: int = 0
    unread: dict[str, int] = dataclasses.field(default_factory=dict)
    left_out: str = ""


def read_records(path: Path, roles: Collection[str] = ROLES) -> list[tuple[dict, str]]:
    """The records of a JSONL file, each with where it stands; BadInput for one that is neither document nor conversation.

    In conversations only `roles` may speak.
    """
    out = []
    for number, record in enumerate(artifact.read_jsonl(path), 1):
        where = record.get("read_from") or f"{path}:{number}"  # a file of the user's is named as the user knows it
        if not isinstance(record.get("text"), str):
            if "messages" not in record:
                raise BadInput(f"{where}: neither 'text' nor 'messages'; a record is a document or a conversation")
            chat.check(record["messages"], where, roles)
        out.append((record, where))
    return out


def read_examples(paths: Iterable[Path], tokenizer: AnyTokenizer, unproven: str = "refuse") -> Iterator[Example]:
    """The records of JSONL files as tokens, in order. A record has `text` (a document) or `messages` (a conversation, `tools` too).

    Raises BadInput with file and line for a record that has neither. A conversation whose loss mask cannot be proven raises it too,
    unless `unproven` is "drop": then it is left out.
    """
    for path in paths:
        records = read_records(path, tokenizer.roles)
        texts = [record["text"] if isinstance(record.get("text"), str) else "" for record, _ in records]
        for (record, where), ids in zip(records, tokenizer.encode_all(texts), strict=True):
            if isinstance(record.get("text"), str):
                # An empty text has no tokens at all, so that the ledger counts it as dropped.
                whole = tokenizer.document(ids) if ids else []
                yield Example(whole, [i > 0 for i in range(len(whole))], True, where)
            else:
                messages, moved = chat.open_thinking(record["messages"])
                try:
                    ids, mask = chat.render(messages, tokenizer, where, record.get("tools"))
                except Unproven as error:
                    if unproven == "refuse":
                        raise BadInput(f"{error}; mend it, or set unproven to drop") from None
                    yield Example([], [], False, where, left_out=error.reason)
                    continue
                said = sum(message["role"] == "assistant" for message in messages)
                untrained = said - sum(map(is_trained, messages))
                supervised = sum(now and not before for before, now in itertools.pairwise([False, *mask]))
                unread = chat.unread(messages, tokenizer, where, record.get("tools"))
                yield Example(ids, mask, False, where, said - untrained - supervised, moved, untrained, unread)


def pack(
    examples: Iterable[Example], row_length: int, pad: int = PAD, too_long: str = "refuse", most_segments: int = 0
) -> tuple[dict[str, np.ndarray], np.ndarray, dict]:
    """Best-fit decreasing packing: arrays `tokens`, `segment_ids`, `loss_mask` of shape [rows, T], the SEGMENTs, and the ledger.

    Documents longer than a row are split into pieces that are segments of their own. What becomes of a longer conversation says
    `too_long`: it raises BadInput, is split too, or is dropped. A row has at most `most_segments` (0: any number), its padding
    counted as one.
    Best-fit packing as in arXiv 2404.10830: each piece goes into the fullest row that still holds it.
    """
    ledger = {"source_records": 0, "source_tokens": 0, "kept_tokens": 0, "split_tokens": 0, "context_turns": 0}
    ledger |= {"moved_openers": 0, "untrained_turns": 0}
    unread: collections.Counter[str] = collections.Counter()  # key of a message -> turns
    dropped: collections.Counter[str] = collections.Counter()  # reason -> records
    dropped_tokens: collections.Counter[str] = collections.Counter()
    pieces: list[tuple[list[int], list[bool], int, int]] = []  # ids, mask, the record and where in it they start
    for record, example in enumerate(examples):
        size = len(example.ids)
        ledger["source_records"] += 1
        ledger["source_tokens"] += size
        ledger["context_turns"] += example.context_turns
        ledger["moved_openers"] += example.moved_openers
        ledger["untrained_turns"] += example.untrained_turns
        unread.update(example.unread)
        if size == 0:
            dropped[example.left_out or "empty text"] += 1
        elif size <= row_length:
            ledger["kept_tokens"] += size
            pieces.append((example.ids, example.mask, record, 0))
        elif example.splittable or too_long == "split":
            ledger["split_tokens"] += size
            for start in range(0, size, row_length):
                mask = example.mask[start : start + row_length]
                pieces.append((example.ids[start : start + row_length], [False, *mask[1:]], record, start))
        elif too_long == "drop":
            dropped["longer than a row"] += 1
            dropped_tokens["longer than a row"] += size
        else:
            raise BadInput(
                f"{example.where}: a conversation of {size} tokens does not fit row_length={row_length}; raise row_length, or set "
                "too_long to split or drop"
            )
    if not pieces:
        why = "".join(f" ({count:,}: {reason})" for reason, count in dropped.items())
        raise BadInput(f"nothing to pack: {ledger['source_records']} records, none with tokens{why}; the corpus is empty")

    rows: list[list[int]] = []
    with_space: dict[int, list[int]] = {}  # space left -> rows that have just that
    spaces: list[int] = []  # the keys of with_space, sorted
    full = 0  # rows with as many segments as there may be
    for index in sorted(range(len(pieces)), key=lambda i: -len(pieces[i][0])):  # stable: equal lengths keep their order
        size = len(pieces[index][0])
        at = bisect.bisect_left(spaces, size)
        if at == len(spaces):
            row, space = len(rows), row_length
            rows.append([])
        else:
            space = spaces[at]
            row = with_space[space].pop()
            if not with_space[space]:
                del with_space[space], spaces[at]
        rows[row].append(index)
        left = space - size
        if left and most_segments and len(rows[row]) == most_segments - 1:
            full += 1  # the next would be one too many, and what is left is padding
        elif left:
            if left not in with_space:
                bisect.insort(spaces, left)
            with_space.setdefault(left, []).append(row)

    tokens = np.full((len(rows), row_length), pad, np.int32)
    segment_ids = np.zeros((len(rows), row_length), np.int32)
    loss_mask = np.zeros((len(rows), row_length), bool)
    segments = np.zeros(len(pieces), SEGMENT)
    places = iter(range(len(pieces)))
    for row, members in enumerate(rows):
        start = 0
        for segment, index in enumerate(members, 1):
            ids, mask, *origin = pieces[index]
            end = start + len(ids)
            tokens[row, start:end], segment_ids[row, start:end], loss_mask[row, start:end] = ids, segment, mask
            segments[next(places)] = (row, segment, *origin, len(ids), sum(mask))
            start = end
    ledger |= {
        "unread_keys": dict(unread),
        "dropped_records": dict(dropped),
        "dropped_tokens": {reason: dropped_tokens[reason] for reason in dropped},
        "padded_tokens": int((segment_ids == 0).sum()),
        "supervised_tokens": int(loss_mask.sum()),
        "rows": len(rows),
        "row_length": row_length,
        "segments": int(1 + np.max(np.count_nonzero(np.diff(segment_ids, axis=1), axis=1), initial=0)),  # of a row, padding too
        "rows_full_of_segments": full,
    }
    if not ledger["supervised_tokens"]:
        raise BadInput("all-zero loss mask: not one token of this corpus would be trained on")
    return {"tokens": tokens, "segment_ids": segment_ids, "loss_mask": loss_mask}, segments, ledger


def make_rows(
    parent: Path,
    name: str,
    corpus: Path,
    tokenizer: AnyTokenizer,
    row_length: int,
    too_long: str = "refuse",
    unproven: str = "refuse",
    most_segments: int = 0,
) -> Path:
    """The artifact of a corpus directory's records as rows, as `pack` says; made once for each (corpus, tokenizer, these, code)."""
    inputs = {
        "corpus": artifact.files_hash(corpus, "*.jsonl"),
        "tokenizer": tokenizer.name,
        "row_length": row_length,
        "too_long": too_long,
        "unproven": unproven,
        "most_segments": most_segments,
        "code": artifact.code_hash("data"),
    }

    def build(directory: Path) -> dict:
        try:
            examples = read_examples(sorted(corpus.glob("*.jsonl")), tokenizer, unproven)
            arrays, segments, ledger = pack(examples, row_length, tokenizer.pad, too_long, most_segments)
        except BadInput as error:
            raise BadInput(f"corpus {name} ({corpus}): {error}") from None
        content = artifact.content_hash(b"".join(array.tobytes() for array in (*arrays.values(), segments)))
        _write_dataset(directory, content, arrays)
        np.save(directory / "segments.npy", segments)
        artifact.write_json(directory / "ledger.json", ledger)
        return {"content": content}

    return artifact.make(parent, name, inputs, build)


def notes(ledger: dict) -> list[str]:
    """What a ledger says beside its tokens that a reader should know: what was left out or changed, and how often."""
    said = [f"{count:,} records left out ({reason})" for reason, count in ledger["dropped_records"].items()]
    for key, text in (
        ("context_turns", "turns of the assistant are context only, since the template drops their thinking"),
        ("moved_openers", "turns had space before their thinking, which was removed"),
        ("untrained_turns", "turns of the assistant are context only, as their weight or train says"),
    ):
        said += [f"{ledger[key]:,} {text}"] if ledger[key] else []
    return said + [f"nothing reads {key!r}, which {turns:,} turns have" for key, turns in ledger["unread_keys"].items()]


def read_ledger(directory: Path) -> dict:
    """The token ledger of a rows artifact."""
    return json.loads((directory / "ledger.json").read_text(encoding="utf-8"))


def read_segments(directory: Path) -> np.ndarray:
    """The SEGMENTs of a rows artifact, by row and segment."""
    return np.load(directory / "segments.npy")


def open_rows(directory: Path):
    """The rows of an artifact for random access: `source[i]` is a dict of three [T] arrays, `len(source)` their number."""
    import tensorflow_datasets as tfds

    content = artifact.read_manifest(directory)["content"]
    return tfds.builder_from_directory(directory / "msm_rows" / content / "1.0.0").as_data_source(split="train")


def _write_dataset(directory: Path, content: str, arrays: dict[str, np.ndarray]) -> None:
    """Writes the arrays as the TFDS dataset `msm_rows/<content>/1.0.0`; the content hash is its config's name."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import registered

    with registered.skip_registration():  # every dataset has a builder of its own, of the same name

        class MsmRows(tfds.core.GeneratorBasedBuilder):
            VERSION = tfds.core.Version("1.0.0")

            def _info(self):
                features = {name: tfds.features.Tensor(shape=array.shape[1:], dtype=array.dtype) for name, array in arrays.items()}
                return tfds.core.DatasetInfo(
                    builder=self,
                    description="Packed rows of msmjax: tokens, segment_ids (0 is padding), loss_mask (True: predicted).",
                    features=tfds.features.FeaturesDict(features),
                    disable_shuffling=True,  # the order of rows is part of what `batch(step)` promises
                )

            def _split_generators(self, dl_manager):
                return {"train": self._generate_examples()}

            def _generate_examples(self):
                for index in range(len(arrays["tokens"])):
                    yield index, {name: array[index] for name, array in arrays.items()}

    config = tfds.core.BuilderConfig(name=content, version="1.0.0")
    builder = MsmRows(config=config, data_dir=directory, file_format="array_record")
    tfds.disable_progress_bar()  # it draws one for each of its phases
    with contextlib.redirect_stdout(None):  # and says where it writes, which is a directory that is renamed at once
        builder.download_and_prepare(download_config=tfds.download.DownloadConfig(try_download_gcs=False))
