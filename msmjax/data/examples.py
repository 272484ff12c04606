"""Examples: the records of a corpus as tokens, read in shards, so that no corpus has to fit into memory.

In: JSONL files of records. Out: where to cut them, and an `Example` for each record, with its loss mask.
"""

import dataclasses
import itertools
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from msmjax import artifact
from msmjax.artifact import BadInput
from msmjax.data import chat
from msmjax.data.chat import Unproven
from msmjax.data.tokenizer import ROLES, AnyTokenizer, is_trained

UNPROVEN = ("refuse", "drop")  # what becomes of a conversation whose loss mask cannot be proven
SHARD_BYTES = 32 << 20  # of records that are packed together: some 8M tokens, of which packing leaves no gaps to speak of
CHUNK_BYTES = 1 << 20  # of records that are tokenized together


@dataclasses.dataclass(frozen=True)
class Example:
    """One record as tokens; `splittable` for documents, which may run on in another row (chats may not).

    `context_turns` counts turns of the assistant that are not supervised (data/proof.py says when), `moved_openers` those whose
    thinking had space before it, `untrained_turns` those that `weight` or `train` make context, `spelled_turns` those that spell a
    control token, which is text there. `unanswered` is 1 where the last turn is not the assistant's; `unread` are the turns with a
    key that nothing reads. One that is `left_out` has no tokens, and the reason there.
    """

    ids: list[int]
    mask: list[bool]
    splittable: bool
    where: str
    context_turns: int = 0
    moved_openers: int = 0
    untrained_turns: int = 0
    spelled_turns: int = 0
    unanswered: int = 0
    unread: dict[str, int] = dataclasses.field(default_factory=dict)
    left_out: str = ""


@dataclasses.dataclass(frozen=True)
class Part:
    """Lines of a JSONL file: its bytes from `start` to `stop`, of which the first line is number `line`, from 1."""

    path: Path
    start: int
    stop: int
    line: int


def cut(paths: Iterable[Path], size: int = SHARD_BYTES) -> list[tuple[Part, ...]]:
    """The lines of files, in order, in shards of `size` bytes and what completes the last line of each."""
    shards: list[tuple[Part, ...]] = []
    parts: list[Part] = []
    room = size
    for path in paths:
        with path.open("rb") as file:
            start, line, at = 0, 1, 0
            for number, text in enumerate(file, 1):
                at += len(text)
                room -= len(text)
                if room <= 0:
                    shards.append((*parts, Part(path, start, at, line)))
                    parts, room = [], size
                    start, line = at, number + 1
        if at > start:
            parts.append(Part(path, start, at, line))
    return [*shards, tuple(parts)] if parts else shards


def read_records(part: Part, roles: Collection[str] = ROLES) -> Iterator[list[tuple[dict, str]]]:
    """The records of lines of JSON, in lists of CHUNK_BYTES, each record with where it stands; BadInput for one that is neither
    document nor conversation.

    In conversations only `roles` may speak.
    """
    with part.path.open("rb") as file:
        file.seek(part.start)
        at, line = part.start, part.line
        while at < part.stop:
            lines, begin = [], at
            while at < min(part.stop, begin + CHUNK_BYTES):
                lines.append(file.readline())
                at += len(lines[-1])
            text = artifact.decode(b"".join(lines), part.path, begin)
            records = []
            for number, record in enumerate(artifact.parse_jsonl(text, part.path, line), line):
                where = record.get("read_from") or f"{part.path}:{number}"  # a file of the user's is named as the user knows it
                if not isinstance(record.get("text"), str):
                    if "messages" not in record:
                        raise BadInput(f"{where}: neither 'text' nor 'messages'; a record is a document or a conversation")
                    chat.check(record["messages"], where, roles)
                records.append((record, where))
            yield records
            line += len(lines)


def read_examples(parts: Iterable[Part], tokenizer: AnyTokenizer, unproven: str = "refuse") -> Iterator[Example]:
    """The records of lines of JSON as tokens, in order: `text` is a document, `messages` a conversation, which may have `tools`.

    Raises BadInput with file and line for a record that has neither. A conversation whose loss mask cannot be proven raises it too,
    unless `unproven` is "drop": then it is left out.
    """
    for records in itertools.chain.from_iterable(read_records(part, tokenizer.roles) for part in parts):
        texts = [record["text"] if isinstance(record.get("text"), str) else "" for record, _ in records]
        for (record, where), ids in zip(records, tokenizer.encode_all(texts), strict=True):
            if isinstance(record.get("text"), str):
                # An empty text has no tokens at all, so that the ledger counts it as dropped.
                whole = tokenizer.document(ids) if ids else []
                yield Example(whole, [i > 0 for i in range(len(whole))], True, where)
            else:
                yield _example(record, tokenizer, where, unproven)


def _example(record: dict, tokenizer: AnyTokenizer, where: str, unproven: str) -> Example:
    """A conversation as tokens."""
    messages, moved = chat.open_thinking(record["messages"])
    try:
        ids, mask = chat.render(messages, tokenizer, where, record.get("tools"))
    except Unproven as error:
        if unproven == "refuse":
            raise BadInput(f"{error}; mend it, or set unproven to drop") from None
        return Example([], [], False, where, left_out=error.reason)
    said = sum(message["role"] == "assistant" for message in messages)
    untrained = said - sum(map(is_trained, messages))
    supervised = sum(now and not before for before, now in itertools.pairwise([False, *mask]))
    unread = chat.unread(messages, tokenizer, where, record.get("tools"))
    context, spelled, unanswered = said - untrained - supervised, tokenizer.spelled(messages), messages[-1]["role"] != "assistant"
    return Example(ids, mask, False, where, context, moved, untrained, spelled, int(unanswered), unread)
