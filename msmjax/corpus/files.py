"""Files of the user's: data sets as they are published, read as documents and conversations.

In: paths, and what is called otherwise in them. Out: records `{text, ...}` or `{messages, ...}`, the latter as role and content,
each with the place it was read from; other fields are kept as they are.
"""

import codecs
import collections
import glob
import io
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from msmjax import artifact
from msmjax.artifact import BadInput

SUFFIXES = (".jsonl", ".ndjson", ".json", ".parquet")
BLOCK = 4 << 20  # bytes of a file that are read at a time
ROWS = 1000  # and rows of a table
PACKED = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2"}
# Form -> the fields that make a record one. What a document is has `text`; the others are conversations.
FORMS = {
    "text": ("text",),
    "messages": ("messages",),
    "ShareGPT": ("conversations",),
    "prompt and completion": ("prompt", "completion"),
    "instruction and output": ("instruction", "output"),
}
# Who speaks in ShareGPT's `from`, and who that is.
SPEAKERS = {
    "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "model": "assistant", "chatgpt": "assistant",
    "system": "system", "tool": "tool", "observation": "tool", "function_response": "tool", "function_call": "assistant",
}  # fmt: skip


def find(paths: Sequence[str]) -> list[Path]:
    """The files that paths name, each a file, a folder or a pattern. Raises BadInput where one names none."""
    out = []
    for path in paths:
        if not path.strip():
            raise BadInput(f"path={path!r}: names nothing; a file, a folder or a pattern is read")
        if Path(path).is_file():
            found = [Path(path)]
        elif Path(path).is_dir():
            found = [file for file in sorted(Path(path).rglob("*")) if file.is_file() and _is_data(file.relative_to(path))]
            if not found:
                raise BadInput(
                    f"{path}: a folder without files that end in {', '.join(SUFFIXES)}, or so and in {', '.join(PACKED)}"
                )
        else:
            found = [Path(name) for name in sorted(glob.glob(path, recursive=True)) if Path(name).is_file()]
            if not found:
                raise BadInput(f"{path}: no such file, and no folder or pattern that names any; check the path in the config")
        out += found
    return list(dict.fromkeys(out))


def read(paths: Sequence[str], columns: Sequence[tuple[str, str]], text_and_messages: str) -> Iterator[tuple[dict, str]]:
    """Each record of the files in order, and its form, one of FORMS: null is absence.

    `columns` are (name in the file, name here). A record that is a document and a conversation is what `text_and_messages` says.
    Raises BadInput, naming file and line, for what cannot be read, for a record of no known form, or of two, and for one whose `id`
    another has.
    """
    seen: set[int] = set()  # hashes of ids, of which there may be millions
    for path in find(paths):
        for number, found in enumerate(_records(path), 1):
            where = f"{path}:{number}"
            record, form = _read(found, where, columns, text_and_messages)
            if "id" in record:
                key = hash(artifact.canonical_json(record["id"]))
                if key in seen:
                    raise BadInput(
                        f"{where}: another record has the id {record['id']!r} too; remove one of them, or name it otherwise in "
                        "columns, where it is the id of something else"
                    )
                seen.add(key)
            yield record, form


def describe(forms: collections.Counter[str]) -> str:
    """How many records there are of each form."""
    what = {"text": "documents", "messages": "conversations"}
    return ", ".join(f"{count:,} {what.get(form, f'conversations ({form})')}" for form, count in forms.most_common())


def _is_data(path: Path) -> bool:
    """Whether a file of a folder is meant: what editors and systems keep beside the data is hidden."""
    return _suffix(path) in SUFFIXES and not any(part.startswith(".") for part in path.parts)


def _suffix(path: Path) -> str:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    return next((suffix for suffix in reversed(suffixes) if suffix not in PACKED), "")


def _records(path: Path) -> Iterator[dict]:
    """The records of one file: JSON lines, a JSON array, or parquet, packed or not; but for an array, a block of it at a time."""
    import pyarrow

    try:
        with pyarrow.input_stream(str(path), compression=PACKED.get(path.suffix.lower())) as stream:
            if _suffix(path) == ".parquet":
                yield from _rows(stream if stream.seekable() else io.BytesIO(stream.read()), path)
                return
            head = stream.read(BLOCK)
            if _suffix(path) == ".json" and head.removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"["):
                yield from _array(artifact.decode(head + stream.read(), path), path)
                return
            line, at = 1, 0
            while head:
                more = stream.read(BLOCK)
                end = len(head) if not more else head.rfind(b"\n") + 1
                yield from artifact.parse_jsonl(artifact.decode(head[:end], path, at), path, line)
                line, at = line + head.count(b"\n", 0, end), at + end
                head = head[end:] + more
    except (OSError, pyarrow.ArrowException) as error:
        raise BadInput(f"{path}: cannot read ({str(error).splitlines()[0]})") from None


def _array(text: str, path: Path) -> list[dict]:
    """The entries of a JSON array."""
    try:
        records = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{path}: not JSON ({error}); fix it") from None
    if wrong := next((number for number, record in enumerate(records, 1) if not isinstance(record, dict)), None):
        raise BadInput(f"{path}:{wrong}: a {type(records[wrong - 1]).__name__}, not an object; each entry is one record")
    if "\\ud" in text.lower():
        for number, record in enumerate(records, 1):
            artifact.check_text(record, f"{path}:{number}")
    return records


def _rows(stream, path: Path) -> Iterator[dict]:
    """The rows of a parquet file; of columns that hold bytes (images, sounds) a line says that they are left out."""
    import pyarrow
    from pyarrow import parquet

    try:
        file = parquet.ParquetFile(stream)
        columns = [field.name for field in file.schema_arrow if not re.search(r"\bbinary\b", str(field.type))]
        for name in [name for name in file.schema_arrow.names if name not in columns]:
            print(f"{path}: left out column {name!r}, which holds bytes")
        number = 0
        for batch in file.iter_batches(batch_size=ROWS, columns=columns):
            for record in batch.to_pylist():
                number += 1
                yield _as_json(record, f"{path}:{number}")
    except (pyarrow.ArrowException, OSError) as error:
        raise BadInput(f"{path}: no parquet file that can be read ({str(error).splitlines()[0]})") from None


def _as_json(value: object, where: str) -> object:
    """What a table holds as JSON can: times and decimals as text."""
    if isinstance(value, dict):
        return {key: _as_json(part, where) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_as_json(part, where) for part in value]
    return value if value is None or isinstance(value, str | int | float | bool) else str(value)


def _read(record: dict, where: str, columns: Sequence[tuple[str, str]], text_and_messages: str) -> tuple[dict, str]:
    needed = {field for fields in FORMS.values() for field in fields}
    if lacking := [theirs for theirs, ours in columns if theirs not in record and ours in needed]:
        raise BadInput(f"{where}: no field {lacking[0]!r}, which columns name; it has {', '.join(map(str, record))}")
    named = {ours: record.get(theirs) for theirs, ours in columns}
    record = {**{key: value for key, value in record.items() if key not in dict(columns)}, **named}
    record = {key: value for key, value in record.items() if value is not None}
    forms = [form for form, fields in FORMS.items() if set(fields) <= record.keys()]
    chosen = [form for form in forms if set(FORMS[form]) & named.keys()] or forms
    if len(chosen) > 1 and "text" in chosen and text_and_messages != "refuse":
        chosen = ["text"] if text_and_messages == "text" else [form for form in chosen if form != "text"]
    if len(chosen) > 1:
        both = " and ".join(repr(FORMS[form][0]) for form in chosen)
        how = "say which in text_and_messages" if "text" in chosen else "name the fields of one of them in columns"
        raise BadInput(f"{where}: both {both}, of which one would be passed over; {how}")
    if not chosen:
        known = ", ".join(" with ".join(fields) for fields in FORMS.values())
        has = ", ".join(map(repr, record)) or "nothing"
        raise BadInput(
            f"{where}: nothing to train on; it has {has}, and known are {known}; name in columns what is called otherwise"
            + (", or which of two answers to train on" if "chosen" in record else "")
        )
    (form,) = chosen
    # What the other forms would have been read from is gone, so that nothing further on takes it for what it is not.
    rest = {key: value for key, value in record.items() if not any(key in FORMS[other] for other in forms)}
    if form == "text":
        return {"text": record["text"], **rest, "read_from": where}, form
    messages = _messages(form, record, where)
    for taken in ("system", "input", "history") if form == "instruction and output" else ("system",):
        rest.pop(taken, None)
    if isinstance(rest.get("tools"), str):
        tools = _json(rest["tools"], f"{where}: 'tools'") if rest["tools"].strip() else None
        rest = {key: value for key, value in rest.items() if key != "tools"} | ({} if tools is None else {"tools": tools})
    return {"messages": messages, **rest, "read_from": where}, form


def _messages(form: str, record: dict, where: str) -> list[dict]:
    """The turns of a conversation as role and content. Raises BadInput for what is no list of turns."""
    if form == "instruction and output":
        asked = [record["instruction"], record.get("input") or ""]
        if not all(isinstance(part, str) for part in asked):
            raise BadInput(f"{where}: 'instruction' and 'input' must be texts")
        history = record.get("history") or []
        if not isinstance(history, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in history):
            raise BadInput(f"{where}: 'history' is no list of pairs, what was said by the user and by the assistant")
        pairs = [*history, ["\n\n".join(filter(None, asked)), record["output"]]]
        turns = [turn for asked, said in pairs for turn in (*_turns(asked, "user"), *_turns(said, "assistant"))]
    elif form == "prompt and completion":
        turns = [*_turns(record["prompt"], "user"), *_turns(record["completion"], "assistant")]
    else:
        turns = record[FORMS[form][0]]
        if isinstance(turns, str):  # as tables have it
            turns = _json(turns, f"{where}: {FORMS[form][0]!r}")
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise BadInput(f"{where}: {FORMS[form][0]!r} is no list of turns")
    turns = [_turn(turn, f"{where}: turn {number}") for number, turn in enumerate(turns)]
    if system := record.get("system"):
        if turns and turns[0].get("role") == "system":
            raise BadInput(f"{where}: both 'system' and a first turn of the system; remove one of them")
        turns = [{"role": "system", "content": system}, *turns]
    return turns


def _turns(said: object, role: str) -> list:
    return said if isinstance(said, list) else [{"role": role, "content": said}]


def _turn(turn: dict, where: str) -> dict:
    """A turn as role and content, text joined where it comes in parts."""
    if "from" in turn and "role" not in turn:
        if not isinstance(turn["from"], str) or turn["from"] not in SPEAKERS:
            raise BadInput(f"{where}: from={turn['from']!r}: unknown; one of {', '.join(SPEAKERS)}")
        rest = {key: value for key, value in turn.items() if key not in ("from", "value")}
        if turn["from"] == "function_call":
            calls = _json(turn.get("value"), where)
            calls = calls if isinstance(calls, list) else [calls]
            if not calls or not all(isinstance(call, dict) for call in calls):
                raise BadInput(f"{where}: 'value' of a function_call is no JSON object, and no list of them")
            called = [{"type": "function", "function": call} for call in calls]
            turn = {"role": "assistant", "content": None, "tool_calls": called}
        else:
            turn = {"role": SPEAKERS[turn["from"]], "content": turn.get("value")}
        turn |= rest
    content = turn.get("content")
    if isinstance(content, list):
        for part in content:
            if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
                kind = part.get("type") if isinstance(part, dict) else type(part).__name__
                raise BadInput(f"{where}: a part of type {kind!r}; only text is trained on")
        turn = {**turn, "content": "".join(part["text"] for part in content)}
    return turn


def _json(text: object, where: str) -> object:
    try:
        value = json.loads(text)
    except (TypeError, ValueError, RecursionError) as error:
        raise BadInput(f"{where}: not JSON ({error})") from None
    artifact.check_text(value, where)
    return value
