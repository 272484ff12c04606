"""Rows: records packed offline into fixed-length arrays, stored as a TFDS dataset, with a ledger of every token.

In: JSONL files of records (data/examples.py). Out: an artifact directory with an `array_record` dataset of `tokens`, `segment_ids`,
`loss_mask` (each [T]), `segments.npy` (which record each segment is of), and `ledger.json`. Segments count from 1 within a row; 0
is padding. `loss_mask` marks the tokens that are predicted; the first token of a segment has nothing to be predicted from and is
never marked.

Records are tokenized and packed in shards of SHARD_BYTES, on all cores, each shard in memory of its own size and an artifact of its
own until all are there: whatever a corpus holds, memory does not grow, and what was interrupted goes on at the next shard.
"""

import bisect
import collections
import concurrent.futures
import concurrent.futures.process
import contextlib
import dataclasses
import functools
import hashlib
import itertools
import json
import multiprocessing
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from tqdm import tqdm

from msmjax import artifact
from msmjax.artifact import BadInput
from msmjax.data import examples
from msmjax.data.examples import Example, Part
from msmjax.data.tokenizer import PAD, AnyTokenizer

TOO_LONG = ("refuse", "split", "drop")  # what becomes of a conversation that is longer than a row

FILE = "msm_rows-train.array_record-{:05}-of-{:05}"  # as TFDS names the files of a dataset

# A segment: the row it is in and its number there; the record it is of, counted over the corpus's files in order; where in that
# record's tokens it starts; how many tokens it has, and how many of them are supervised.
SEGMENT = np.dtype([(name, np.int32) for name in ("row", "segment", "record", "start", "tokens", "supervised")])


def pack(
    records: Iterable[Example], row_length: int, pad: int = PAD, too_long: str = "refuse", most_segments: int = 0
) -> tuple[dict[str, np.ndarray], np.ndarray, dict]:
    """Best-fit decreasing packing: arrays `tokens`, `segment_ids`, `loss_mask` of shape [rows, T], the SEGMENTs, and the ledger.

    Documents longer than a row are split into pieces that are segments of their own. What becomes of a longer conversation says
    `too_long`: it raises BadInput, is split too, or is dropped. A row has at most `most_segments` (0: any number), its padding
    counted as one.
    Best-fit packing as in arXiv 2404.10830: each piece goes into the fullest row that still holds it.
    """
    ledger = {"source_records": 0, "source_tokens": 0, "kept_tokens": 0, "split_tokens": 0, "context_turns": 0}
    ledger |= {"moved_openers": 0, "untrained_turns": 0, "spelled_turns": 0, "unanswered": 0}
    unread: collections.Counter[str] = collections.Counter()  # key of a message -> turns
    dropped: collections.Counter[str] = collections.Counter()  # reason -> records
    dropped_tokens: collections.Counter[str] = collections.Counter()
    pieces: list[tuple[np.ndarray, np.ndarray, int, int]] = []  # ids, mask, the record and where in it they start
    for record, example in enumerate(records):
        size = len(example.ids)
        ids, mask = np.array(example.ids, np.int32), np.array(example.mask, bool)
        ledger["source_records"] += 1
        ledger["source_tokens"] += size
        ledger["context_turns"] += example.context_turns
        ledger["moved_openers"] += example.moved_openers
        ledger["untrained_turns"] += example.untrained_turns
        ledger["spelled_turns"] += example.spelled_turns
        ledger["unanswered"] += example.unanswered
        unread.update(example.unread)
        if size == 0:
            dropped[example.left_out or "empty text"] += 1
        elif size <= row_length:
            ledger["kept_tokens"] += size
            pieces.append((ids, mask, record, 0))
        elif example.splittable or too_long == "split":
            ledger["split_tokens"] += size
            mask[::row_length] = False  # the first token of a segment has nothing to be predicted from
            for start in range(0, size, row_length):
                pieces.append((ids[start : start + row_length], mask[start : start + row_length], record, start))
        elif too_long == "drop":
            dropped["longer than a row"] += 1
            dropped_tokens["longer than a row"] += size
        else:
            raise BadInput(
                f"{example.where}: a conversation of {size} tokens does not fit row_length={row_length}; raise row_length, or set "
                "too_long to split or drop"
            )
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
            segments[next(places)] = (row, segment, *origin, len(ids), np.count_nonzero(mask))
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
    workers: int | None = None,
) -> Path:
    """The artifact of a corpus directory's records as rows, as `pack` says; made once for each (corpus, tokenizer, these, code).

    `workers` processes make it, as many as there are cores by default; the rows are the same whatever their number.
    """
    inputs = {
        "corpus": artifact.files_hash(corpus, "*.jsonl"),
        "tokenizer": tokenizer.name,
        "row_length": row_length,
        "too_long": too_long,
        "unproven": unproven,
        "most_segments": most_segments,
        "code": artifact.code_hash("data"),
    }
    final, paths = artifact.path(parent, name, inputs), sorted(corpus.glob("*.jsonl"))
    if final.exists():
        artifact.read_manifest(final, inputs)
        return final
    shards = parent / f"{final.name}.shards"
    make_shard = functools.partial(_make_shard, shards, inputs, dataclasses.replace(tokenizer))  # without what it has opened

    def build(directory: Path) -> dict:
        try:
            return _join(directory, _on_all_cores(make_shard, examples.cut(paths), f"packing {name}", workers), row_length)
        except BadInput as error:
            raise BadInput(f"corpus {name} ({corpus}): {error}") from None

    with artifact.lock(parent, waits=True):  # another run may be making the same, on all cores too
        try:
            artifact.make(parent, name, inputs, build)
            for left in parent.glob(f"{name}-{'?' * 12}.shards"):  # of data or settings that were mended since
                shutil.rmtree(left, ignore_errors=True)
        finally:
            with contextlib.suppress(OSError):  # shards that are finished stay
                shards.rmdir()
    return final


def _make_shard(parent: Path, inputs: dict, tokenizer: AnyTokenizer, number: int, parts: tuple[Part, ...]) -> Path:
    """The artifact of some of the records that the rows of `inputs` are made from: as for all of them, but no dataset yet."""

    def build(directory: Path) -> dict:
        read = examples.read_examples(parts, tokenizer, inputs["unproven"])
        arrays, segments, ledger = pack(read, inputs["row_length"], tokenizer.pad, inputs["too_long"], inputs["most_segments"])
        hashed = hashlib.sha256()
        for array in (*arrays.values(), segments):
            hashed.update(array)
        _write_rows(directory / "rows", arrays)
        np.save(directory / "segments.npy", segments)
        artifact.write_json(directory / "ledger.json", ledger)
        return {"content": hashed.hexdigest()[:12]}

    return artifact.make(parent, "shard", {**inputs, "shard": number}, build)


def _on_all_cores(
    make_shard: Callable[[int, tuple[Part, ...]], Path], shards: list[tuple[Part, ...]], label: str, workers: int | None
) -> list[Path]:
    """What `make_shard` makes of each shard, in order; the first of them that is wrong raises."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    workers = min(workers or cores, len(shards))
    off = None if len(shards) > 1 else True  # None: where nobody looks
    bar = functools.partial(tqdm, total=len(shards), desc=label, unit="shard", leave=False, disable=off)
    if workers <= 1:
        return [make_shard(number, parts) for number, parts in bar(enumerate(shards))]
    spawn = multiprocessing.get_context("spawn")  # a fork would copy the threads of JAX's run time as they stand
    with concurrent.futures.ProcessPoolExecutor(workers, spawn, _start_worker, (make_shard,)) as pool:
        try:
            futures = [pool.submit(_work, number, parts) for number, parts in enumerate(shards)]
            return [future.result() for future in bar(futures)]
        except concurrent.futures.process.BrokenProcessPool:
            raise BadInput(
                f"a process that packs was killed, for want of memory perhaps: each of {workers} takes some 300 MiB; run it on "
                "fewer cores (taskset); what is finished is kept"
            ) from None
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for worker in multiprocessing.active_children():
                worker.terminate()
            raise


_make_one: list[Callable] = []  # what this process, a worker, makes of a shard


def _start_worker(make_shard: Callable) -> None:
    """A worker has one core, leaves signals to the process that started it, and ends with that one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _make_one.append(make_shard)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)


def _work(number: int, parts: tuple[Part, ...]) -> Path:
    return _make_one[0](number, parts)


def _join(directory: Path, shards: list[Path], row_length: int) -> dict:
    """The dataset, the segments and the ledger of all shards, and what the manifest says of them."""
    ledgers = [read_ledger(shard) for shard in shards]
    ledger = {key: _sum(key, [one[key] for one in ledgers]) for key in ledgers[0]} if ledgers else {"source_records": 0}
    if not ledger.get("rows"):
        why = "".join(f" ({count:,}: {reason})" for reason, count in ledger.get("dropped_records", {}).items())
        raise BadInput(f"nothing to pack: {ledger['source_records']} records, none with tokens{why}; the corpus is empty")
    if not ledger["supervised_tokens"]:
        raise BadInput("all-zero loss mask: not one token of this corpus would be trained on")
    contents = [artifact.read_manifest(shard)["content"] for shard in shards]
    content = contents[0] if len(shards) == 1 else artifact.content_hash(contents)
    data = directory / "msm_rows" / content / "1.0.0"  # the content hash is the name of the dataset's config
    data.mkdir(parents=True)
    filled = [(shard / "rows", one["rows"]) for shard, one in zip(shards, ledgers, strict=True) if one["rows"]]
    for number, (file, _) in enumerate(filled):
        _link(file, data / FILE.format(number, len(filled)))
    _describe(data, row_length, [count for _, count in filled])
    row, record, parts = 0, 0, []
    for shard, one in zip(shards, ledgers, strict=True):
        part = read_segments(shard)
        part["row"] += row
        part["record"] += record
        parts.append(part)
        row, record = row + one["rows"], record + one["source_records"]
    np.save(directory / "segments.npy", np.concatenate(parts))
    artifact.write_json(directory / "ledger.json", ledger)
    return {"content": content}


def _sum(key: str, values: list) -> int | dict:
    """Of an entry of the ledger, what all shards have together."""
    if isinstance(values[0], dict):
        return {name: sum(value.get(name, 0) for value in values) for name in dict.fromkeys(itertools.chain(*values))}
    return max(values) if key in ("row_length", "segments") else sum(values)


def _link(file: Path, to: Path) -> None:
    try:
        os.link(file, to)
    except OSError:  # not every file system can
        shutil.copy2(file, to)


def notes(ledger: dict) -> list[str]:
    """What a ledger says beside its tokens that a reader should know: what was left out or changed, and how often."""
    said = [f"{count:,} records left out ({reason})" for reason, count in ledger["dropped_records"].items()]
    for key, text in (
        ("context_turns", "turns of the assistant are context only, since the template drops their thinking"),
        ("moved_openers", "turns had space before their thinking, which was removed"),
        ("untrained_turns", "turns of the assistant are context only, as their weight or train says"),
        ("spelled_turns", "turns spell a control token, which is text there"),
        ("unanswered", "conversations end with a turn that is not the assistant's, after which nothing is trained on"),
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


def _features(row_length: int):
    """What TFDS writes of a row: the bytes of each array, since lists of numbers take twenty times as long to write."""
    from tensorflow_datasets import features

    dtypes = {"tokens": np.int32, "segment_ids": np.int32, "loss_mask": np.bool_}
    arrays = {
        name: features.Tensor(shape=(row_length,), dtype=dtype, encoding=features.Encoding.BYTES) for name, dtype in dtypes.items()
    }
    return features.FeaturesDict(arrays)


def _write_rows(file: Path, arrays: dict[str, np.ndarray]) -> None:
    """Writes rows as one file of a TFDS dataset."""
    from tensorflow_datasets.core import file_adapters

    features = _features(arrays["tokens"].shape[1])
    rows = (features.serialize_example(dict(zip(arrays, row, strict=True))) for row in zip(*arrays.values(), strict=True))
    file_adapters.ArrayRecordFileAdapter.write_examples(file, enumerate(rows))


def _describe(data: Path, row_length: int, counts: list[int]) -> None:
    """Makes files of so many rows each a TFDS dataset."""
    import tensorflow_datasets as tfds

    template = tfds.core.ShardedFileTemplate(data_dir=data, dataset_name="msm_rows", split="train", filetype_suffix="array_record")
    size = sum(file.stat().st_size for file in data.iterdir())
    tfds.folder_dataset.write_metadata(
        data_dir=data,
        features=_features(row_length),
        split_infos=[tfds.core.SplitInfo(name="train", shard_lengths=counts, num_bytes=size, filename_template=template)],
        check_data=False,
        description="Packed rows of msmjax: tokens, segment_ids (0 is padding), loss_mask (True: predicted).",
    )
