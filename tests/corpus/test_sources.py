"""Files of records: what a record is where it could be two things."""

import json

import pytest

from msmjax import artifact
from msmjax.artifact import BadInput
from msmjax.corpus import sources
from msmjax.corpus.sources import AssistantConfig, FileSource, Makers, SelectionSource, WorldConfig
from msmjax.corpus.teacher import Teacher

CHAT = [{"role": "user", "content": "Which?"}, {"role": "assistant", "content": "The feta."}]
BOTH = {"text": "Which? The feta.", "messages": CHAT, "source": "here"}


def make(tmp_path, records, text_and_messages="refuse", selection=False):
    """The corpus of a file with these records: its directory, and all its records without the place they were read from."""
    file = tmp_path / "file.jsonl"
    if not file.exists():
        file.write_text("".join(json.dumps(record) + "\n" for record in records))
    source = SelectionSource((str(file),), (), (("here", 1),), 0) if selection else FileSource((str(file),), ())
    makers = Makers(WorldConfig(0, 4, 12), AssistantConfig("Aria", "Northlight"), {}, tmp_path, Teacher, text_and_messages)
    directory = sources.make_corpus(tmp_path / "corpora", "mine", source, makers)
    read = sources.read_corpus(directory)
    return directory, [{key: value for key, value in record.items() if key != "read_from"} for record in read]


@pytest.mark.parametrize("selection", [False, True])
@pytest.mark.parametrize("text", ["Which? The feta.", ""])
def test_a_record_with_text_and_messages(tmp_path, text, selection):
    """Refused by its line, unless the config says which of them counts; the manifest counts what it became."""
    records = [{"text": "A document.", "source": "there"}, {**BOTH, "text": text}]
    with pytest.raises(BadInput, match=r"file.jsonl:2: both 'text' and 'messages', .*say which in text_and_messages"):
        make(tmp_path, records, selection=selection)
    for key, counts in (("text", [2, 0]), ("messages", [1, 1])):
        directory, read = make(tmp_path, records, key, selection)
        manifest = artifact.read_manifest(directory)
        assert [manifest["documents"], manifest["conversations"]] == ([counts[0] - 1, counts[1]] if selection else counts)
        assert {key: records[1][key], "source": "here"} in read


def test_null_is_absence(tmp_path):
    """Parquet files have every column in every record."""
    records = [{"text": "A document.", "messages": None}, {"text": None, "messages": CHAT}]
    directory, read = make(tmp_path, records)
    assert read == [{"text": "A document."}, {"messages": CHAT}]
    manifest = artifact.read_manifest(directory)
    assert [manifest["documents"], manifest["conversations"]] == [1, 1]
    assert sources.first_conversation(FileSource((str(tmp_path / "file.jsonl"),), ()), "refuse")["messages"] == CHAT
