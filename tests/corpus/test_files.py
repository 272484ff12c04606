"""Files of the user's: every form that data sets are published in reads as the same conversation, and what is none is named."""

import bz2
import collections
import datetime
import decimal
import gzip
import json

import pyarrow
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from msmjax.artifact import BadInput
from msmjax.corpus import files

SAID = ("Be brief.", "Which?", "The feta.")
CHAT = [{"role": role, "content": text} for role, text in zip(("system", "user", "assistant"), SAID, strict=True)]
FROM = [{"from": who, "value": text} for who, text in zip(("system", "human", "gpt"), SAID, strict=True)]
PARTS = [
    {**turn, "content": [{"type": "text", "text": turn["content"][:3]}, {"type": "text", "text": turn["content"][3:]}]}
    for turn in CHAT
]
# Form -> a record that says CHAT in it.
CONVERSATIONS = {
    "messages": {"messages": CHAT},
    "messages, in parts": {"messages": PARTS},
    "messages, as JSON": {"messages": json.dumps(CHAT)},
    "messages, system beside": {"system": SAID[0], "messages": CHAT[1:]},
    "ShareGPT": {"conversations": FROM},
    "ShareGPT, system beside": {"system": SAID[0], "conversations": FROM[1:]},
    "ShareGPT, as roles": {"conversations": CHAT},
    "prompt and completion": {"system": SAID[0], "prompt": SAID[1], "completion": SAID[2]},
    "prompt and completion, as turns": {"prompt": CHAT[:2], "completion": CHAT[2:]},
    "instruction and output": {"system": SAID[0], "instruction": SAID[1], "input": "", "output": SAID[2]},
}  # fmt: skip


def read(path, columns=(), text_and_messages="refuse"):
    return [record for record, _ in files.read([str(path)], columns, text_and_messages)]


def write(path, records):
    """A file of records as its name says."""
    kind = path.name.lower().split(".", 1)[1]
    lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode()
    array = json.dumps(records, indent=1, ensure_ascii=False).encode()
    if kind.startswith("parquet"):
        parquet.write_table(pyarrow.Table.from_pylist(records), path)
    elif kind.endswith("zst"):
        with pyarrow.output_stream(str(path), compression="zstd") as stream:
            stream.write(lines)
    else:
        pack = {"gz": gzip.compress, "bz2": bz2.compress}.get(kind.rpartition(".")[2], bytes)
        path.write_bytes(pack(array if kind.startswith("json.") or kind == "json" else lines))


@pytest.mark.parametrize("form", CONVERSATIONS)
def test_every_form_says_the_same(tmp_path, form):
    path = tmp_path / "mine.jsonl"
    write(path, [{**CONVERSATIONS[form], "source": "here", "id": 7}])
    (record,) = read(path)
    assert record == {"messages": CHAT, "source": "here", "id": 7, "read_from": f"{path}:1"}


@pytest.mark.parametrize(
    "name",
    ["a.jsonl", "a.ndjson", "a.json", "a.parquet", "a.jsonl.gz", "a.json.gz", "a.jsonl.zst", "a.jsonl.bz2", "a.txt", "A.JSONL.GZ"],
)
def test_every_kind_of_file_says_the_same(tmp_path, name):
    records = [{"text": "A document,\u2028in two parts.", "source": None}, {"text": "Another; é.", "source": "there"}]
    write(tmp_path / name, records)
    assert read(tmp_path / name) == [
        {"text": records[0]["text"], "read_from": f"{tmp_path / name}:1"},
        {**records[1], "read_from": f"{tmp_path / name}:2"},
    ]


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.parquet", "a.jsonl.gz", "a.jsonl.zst"])
@pytest.mark.parametrize("block", [1, 16, 100])
def test_what_is_read_in_blocks_is_the_same(tmp_path, monkeypatch, name, block):
    records = [{"text": "é\u2028" * size, "id": f"a{size}"} for size in (3, 0, 40, 1, 7)]
    write(tmp_path / name, records)
    if name == "a.jsonl":  # without the end of the last line
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes().rstrip())
    whole = read(tmp_path / name)
    monkeypatch.setattr(files, "BLOCK", block)
    monkeypatch.setattr(files, "ROWS", 2)
    assert read(tmp_path / name) == whole
    assert [record["read_from"] for record in whole] == [f"{tmp_path / name}:{number}" for number in range(1, 6)]


def test_what_is_wrong_in_a_later_block_is_named_by_its_place(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "BLOCK", 16)
    lines = [b'{"text": "One."}', b'{"text": "Two."}', b'{"text": "\xff"}']
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines))
    with pytest.raises(BadInput, match=r"a.jsonl: not UTF-8 .* at byte 44"):
        read(tmp_path / "a.jsonl")
    lines[2] = b'{"text": 1'
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines))
    with pytest.raises(BadInput, match=r"a.jsonl:3: not JSON"):
        read(tmp_path / "a.jsonl")


def test_two_records_with_one_id(tmp_path):
    for name, ids in (("a.jsonl", [1, "1", "b"]), ("b.jsonl", ["c", "b"])):
        write(tmp_path / name, [{"text": "One.", "id": number} for number in ids])
    assert len(read(tmp_path / "a.jsonl")) == 3
    with pytest.raises(BadInput, match=r"b.jsonl:2: another record has the id 'b' too; remove one of them, or name it otherwise"):
        read(tmp_path)
    assert len(read(tmp_path, (("id", "topic"),))) == 5


def test_marks_and_line_ends_of_other_systems(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "One."}\r\n{"text": "Two."}\r\n')
    assert [record["text"] for record in read(tmp_path / "a.jsonl")] == ["One.", "Two."]
    (tmp_path / "a.json").write_bytes(b'\xef\xbb\xbf[{"text": "One."},\r\n{"text": "Two."}]\r\n')
    assert [record["text"] for record in read(tmp_path / "a.json")] == ["One.", "Two."]


def test_folders_patterns_and_several_paths(tmp_path):
    (tmp_path / "deep").mkdir()
    for name in ("a.jsonl", "b.json", "deep/c.jsonl.gz"):
        write(tmp_path / name, [{"text": name}])
    (tmp_path / "README.md").write_text("About these files.")
    (tmp_path / ".ipynb_checkpoints").mkdir()
    for name in (".ipynb_checkpoints/a-checkpoint.jsonl", "deep/._c.jsonl"):  # of editors and systems
        write(tmp_path / name, [{"text": name}])
    texts = lambda *paths: [record["text"] for record, _ in files.read([str(tmp_path / path) for path in paths], (), "refuse")]  # noqa: E731
    assert texts("") == ["a.jsonl", "b.json", "deep/c.jsonl.gz"]
    assert texts("*.json*") == ["a.jsonl", "b.json"]
    assert texts("**/*.gz", "a.jsonl", "*.jsonl") == ["deep/c.jsonl.gz", "a.jsonl"]  # none is read twice
    (tmp_path / "none").mkdir()
    with pytest.raises(BadInput, match="path='': names nothing"):
        list(files.read([""], (), "refuse"))
    for path, said in (
        ("none", "a folder without files that end in .jsonl, "),
        ("d*.jsonl", "no such file, and no folder or pattern"),
    ):
        with pytest.raises(BadInput, match=said):
            texts(path)


def test_tools_and_their_calls(tmp_path):
    call = {"name": "look", "arguments": {"at": "feta"}}
    said = [("human", "Look."), ("function_call", json.dumps(call)), ("observation", "It is white."), ("gpt", "White.")]
    tools = [{"type": "function", "function": {"name": "look"}}]
    write(
        tmp_path / "a.jsonl", [{"conversations": [{"from": who, "value": text} for who, text in said], "tools": json.dumps(tools)}]
    )
    (record,) = read(tmp_path / "a.jsonl")
    assert record["tools"] == tools
    assert [turn["role"] for turn in record["messages"]] == ["user", "assistant", "tool", "assistant"]
    assert record["messages"][1] == {"role": "assistant", "content": None, "tool_calls": [{"type": "function", "function": call}]}
    kept = [CHAT[1], {"role": "assistant", "content": None, "tool_calls": [{"function": call}], "reasoning_content": "Hm."}]
    write(tmp_path / "b.jsonl", [{"messages": kept}])
    assert read(tmp_path / "b.jsonl")[0]["messages"] == kept

    several = [{"name": "look"}, {"name": "taste"}]
    write(tmp_path / "c.jsonl", [{"conversations": [{"from": "function_call", "value": json.dumps(several)}], "tools": ""}])
    (record,) = read(tmp_path / "c.jsonl")
    assert [call["function"] for call in record["messages"][0]["tool_calls"]] == several
    assert "tools" not in record


def test_instructions_with_input_and_history(tmp_path):
    path = tmp_path / "a.jsonl"
    write(path, [{"instruction": "Shorten.", "input": "A b c.", "output": "A.", "history": [["Hello?", "Yes."]]}])
    assert [turn["content"] for turn in read(path)[0]["messages"]] == ["Hello?", "Yes.", "Shorten.\n\nA b c.", "A."]
    assert read(path)[0].keys() == {"messages", "read_from"}
    write(path, [{"instruction": "Shorten.", "output": "A.", "history": ["Hello?"]}])
    with pytest.raises(BadInput, match="'history' is no list of pairs"):
        read(path)


def test_tables_hold_more_than_json_does(tmp_path, capsys):
    """Times and decimals are text; bytes are left out, and a line says so."""
    path = tmp_path / "a.parquet"
    when, price = datetime.datetime(2026, 11, 27, 8), decimal.Decimal("1.50")
    rows = [{"text": "One.", "when": when, "price": price, "image": {"bytes": b"\xff", "path": "a.png"}, "raw": b"\xff"}]
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    (record,) = read(path)
    assert record == {"text": "One.", "when": "2026-11-27 08:00:00", "price": "1.50", "read_from": f"{path}:1"}
    assert json.loads(json.dumps(record)) == record
    said = capsys.readouterr().out
    assert "left out column 'image', which holds bytes" in said
    assert "left out column 'raw', which holds bytes" in said


def test_columns_name_what_is_called_otherwise(tmp_path):
    path = tmp_path / "a.jsonl"
    write(path, [{"question": "Which?", "response": "The feta.", "prompt_id": 3}])
    assert read(path, (("question", "prompt"), ("response", "completion"))) == [
        {"messages": CHAT[1:], "prompt_id": 3, "read_from": f"{path}:1"}
    ]
    assert len(read(path, (("question", "instruction"), ("response", "output"), ("context", "input")))) == 1  # not all have one
    with pytest.raises(BadInput, match=r"a.jsonl:1: no field 'answer', which columns name; it has question, response, prompt_id"):
        read(path, (("answer", "completion"),))
    write(path, [{"chosen": CHAT, "rejected": CHAT[:1], "prompt": "Which?", "text": "Which? The feta."}])
    assert read(path, (("chosen", "messages"),))[0]["messages"] == CHAT  # what is named is meant


def test_what_is_of_several_forms(tmp_path):
    path = tmp_path / "a.jsonl"
    write(path, [{"text": "Which? The feta.", "messages": CHAT}])
    with pytest.raises(BadInput, match=r"a.jsonl:1: both 'text' and 'messages', .*say which in text_and_messages"):
        read(path)
    assert read(path, (), "messages") == [{"messages": CHAT, "read_from": f"{path}:1"}]
    assert read(path, (), "text") == [{"text": "Which? The feta.", "read_from": f"{path}:1"}]
    write(path, [{"prompt": "Which?", "completion": "The feta.", "messages": CHAT}])
    with pytest.raises(BadInput, match=r"both 'messages' and 'prompt', .*; name the fields of one of them in columns"):
        read(path)
    assert read(path, (("completion", "completion"),))[0]["messages"] == CHAT[1:]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"txt": "a", "n": 1}', r"a.jsonl:1: nothing to train on; it has 'txt', 'n', and known are text, messages, "),
        ('{"chosen": "a", "rejected": "b"}', r"name in columns what is called otherwise, or which of two answers to train on"),
        ('{"messages": [], "conversations": []}', r"both 'messages' and 'conversations'"),
        ('{"conversations": [{"from": "narrator", "value": "a"}]}', r"turn 0: from='narrator': unknown; one of human, "),
        ('{"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}', r"turn 0: a part of type 'image_url'; only text"),
        ('{"system": "a", "messages": [{"role": "system", "content": "b"}]}', r"both 'system' and a first turn of the system"),
        ('{"instruction": 7, "output": "b"}', r"'instruction' and 'input' must be texts"),
        ('{"messages": "[{"}', r"'messages': not JSON"),
        ('{"messages": "' + "[" * 100_000 + '"}', r"'messages': not JSON"),
        (json.dumps({"messages": json.dumps([{"role": "user", "content": "\ud800"}])}), r"'messages': half a surrogate pair"),
        ('{"messages": ["Hello?"]}', r"'messages' is no list of turns"),
        ('{"conversations": [{"from": ["human"], "value": "a"}]}', r"turn 0: from=\['human'\]: unknown"),
        ('{"conversations": [{"from": "function_call", "value": "[7]"}]}', r"turn 0: 'value' of a function_call is no JSON object"),
        ('{"text": "a"}\n{"text": ', r"a.jsonl:2: not JSON"),
        ('{"text": ' + "[" * 100_000, r"a.jsonl:1: not JSON that can be read"),
        ('{"text": "\\ud800"}', r"a.jsonl:1: half a surrogate pair"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_named(tmp_path, content, said):
    (tmp_path / "a.jsonl").write_text(content)
    with pytest.raises(BadInput, match=said):
        read(tmp_path / "a.jsonl")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.json", b'[{"text": "a"}, 7]', r"a.json:2: a int, not an object"),
        ("a.json", b'[{"text": "a"}', r"a.json: not JSON"),
        ("a.json", b'[{"text": "a"}, {"text": "\\udc00"}]', r"a.json:2: half a surrogate pair"),
        ("a.jsonl.gz", b"no gzip", r"a.jsonl.gz: cannot read"),
        ("a.jsonl.zst", b"no zstd", r"a.jsonl.zst: cannot read"),
        ("a.parquet", b"no parquet", r"a.parquet: no parquet file that can be read"),
        ("a.jsonl", b'{"text": "\xff"}', r"a.jsonl: not UTF-8"),
    ],
)
def test_files_that_cannot_be_read_are_named(tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BadInput, match=said):
        read(tmp_path / name)


def test_described():
    forms = collections.Counter({"ShareGPT": 12_000, "text": 30, "messages": 1})
    assert files.describe(forms) == "12,000 conversations (ShareGPT), 30 documents, 1 conversations"


LEAVES = (
    st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from(["", "user", "assistant", "gpt", "text", "Which?", "[]", "{"])
)
KEYS = st.sampled_from(
    [
        "text",
        "messages",
        "conversations",
        "prompt",
        "completion",
        "instruction",
        "input",
        "output",
        "system",
        "tools",
        "role",
        "content",
        "from",
        "value",
        "type",
        "chosen",
        "tool_calls",
    ]
)
VALUES = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4), max_leaves=12)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    records=st.lists(st.dictionaries(KEYS, VALUES, max_size=5) | VALUES, max_size=3),
    cut=st.integers(0, 400),
    name=st.sampled_from(["m.json", "m.jsonl"]),
)
def test_whatever_a_file_holds_it_is_read_or_refused_in_one_line(tmp_path, records, cut, name):
    text = json.dumps(records) if name == "m.json" else "".join(json.dumps(record) + "\n" for record in records)
    (tmp_path / name).write_text(text[: len(text) - cut] if cut < len(text) else text)
    got, refused = [], ""
    try:
        got = read(tmp_path / name)
    except BadInput as error:
        refused = str(error)
    assert not refused or refused.startswith(str(tmp_path / name))
    assert "\n" not in refused
    assert all(("text" in record) != ("messages" in record) for record in got)
    assert refused or cut < len(text) or len(got) == len(records)  # none is lost
