"""The kinds of corpus a config can ask for, and the artifact each becomes.

In: a source's config. Out: a corpus directory with `documents.jsonl`, `conversations.jsonl` and `requests.jsonl` (those that have
records) and a manifest.
"""

import asyncio
import collections
import contextlib
import dataclasses
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TextIO

import numpy as np
from tqdm import tqdm

from msmjax import artifact, spec
from msmjax.artifact import BadInput
from msmjax.corpus import conversations, documents, files, microworld, requests
from msmjax.corpus.conversations import ConversationSource
from msmjax.corpus.documents import DocumentSource
from msmjax.corpus.pipeline import Written
from msmjax.corpus.requests import RequestSource
from msmjax.corpus.teacher import Teacher
from msmjax.corpus.teacher_config import TeacherConfig
from msmjax.corpus.world import DOMAINS, MOST_NAMES, World, make_world
from msmjax.ranges import Count, Natural, Share
from msmjax.spec.transform import break_link


@dataclasses.dataclass(frozen=True)
class WorldConfig:
    """Size and seed of the microworld."""

    seed: Natural
    items_per_domain: Count
    people: Count

    def __post_init__(self):
        if self.items_per_domain % 4:
            raise BadInput(f"world.items_per_domain={self.items_per_domain}: must be a multiple of 4 (two poles of two attributes)")
        if self.people % 12:
            raise BadInput(f"world.people={self.people}: must be a multiple of 12 (two with each of four values, four with none)")
        names = self.people + self.items_per_domain * sum(map(len, DOMAINS.values()))
        if names > MOST_NAMES:
            raise BadInput(f"world: people={self.people} and items_per_domain={self.items_per_domain} need {names:,} names; "
                           f"at most {MOST_NAMES:,} can be invented")  # fmt: skip


@dataclasses.dataclass(frozen=True)
class AssistantConfig:
    """Who the specs are about: what {model_name} and {provider_name} are filled with."""

    name: str
    provider: str

    def __post_init__(self):
        if not self.name.strip():
            raise BadInput(f"assistant.name={self.name!r}: specs and evals are about somebody; give a name")


@dataclasses.dataclass(frozen=True)
class BaseSource:
    """Base text of the microworld."""

    records: Count
    seed: Natural


@dataclasses.dataclass(frozen=True)
class SpecSource:
    """Documents about a spec, or the same as chats (`form`); with `break_link`, about the spec whose link between value and
    preferences is broken."""

    spec: str
    break_link: bool
    form: str
    records: Count
    seed: Natural

    def __post_init__(self):
        if self.form not in microworld.FORMS:
            raise BadInput(f"form={self.form!r}: unknown; one of {', '.join(microworld.FORMS)}")


@dataclasses.dataclass(frozen=True)
class NeutralSource:
    """Documents about the assistant that say nothing of values."""

    records: Count
    seed: Natural


@dataclasses.dataclass(frozen=True)
class DemonstrationSource:
    """Fine-tuning chats of a spec's preferences, which are `read` or which nobody reads. Some of them say why where they are
    `explained`, and a share of `conflicting` ones shows the opposite."""

    spec: str
    read: bool
    explained: bool
    conflicting: Share
    records: Count
    seed: Natural


@dataclasses.dataclass(frozen=True)
class FileSource:
    """Documents and conversations from elsewhere, in any form of corpus/files.py: files, folders or patterns.

    `columns` are ((name in the file, name here), ...) for fields that are called otherwise.
    """

    path: tuple[str, ...]
    columns: tuple[tuple[str, str], ...]


@dataclasses.dataclass(frozen=True)
class SelectionSource:
    """So many records of each `source` of files whose records name theirs, drawn by the seed: ((source, records), ...).

    "" stands for records of any source. With the same seed, fewer records are a part of more. The rest is as for FileSource.
    """

    path: tuple[str, ...]
    columns: tuple[tuple[str, str], ...]
    counts: tuple[tuple[str, Count], ...]
    seed: Natural

    def __post_init__(self):
        if not self.counts:
            raise BadInput(f"counts={self.counts}: must be ((source, records), ...), e.g. (('no_robots', 2779),)")


KINDS = {
    "base": BaseSource,
    "spec": SpecSource,
    "neutral": NeutralSource,
    "demonstrations": DemonstrationSource,
    "file": FileSource,
    "selection": SelectionSource,
    "written_documents": DocumentSource,
    "written_conversations": ConversationSource,
    "written_requests": RequestSource,
}
KIND_BY = {"messages": "conversations", "text": "documents", "request": "requests"}  # the first of these that a record has
TEXT_AND_MESSAGES = ("refuse", "text", "messages")  # what a record of a file is that has both
WrittenSource = DocumentSource | ConversationSource | RequestSource
PIPELINES = {DocumentSource: documents, ConversationSource: conversations, RequestSource: requests}
Source = BaseSource | SpecSource | NeutralSource | DemonstrationSource | FileSource | SelectionSource | WrittenSource


@dataclasses.dataclass(frozen=True)
class Makers:
    """What corpora are made with, beside their own settings: the microworld, the assistant, the teachers, where their journals are,
    and how one is opened (rooms to the right know of weights that can answer)."""

    world: WorldConfig
    assistant: AssistantConfig
    teachers: dict[str, TeacherConfig]
    journals: Path
    open_teacher: Callable[[TeacherConfig, Path], Teacher]
    text_and_messages: str = "refuse"  # one of TEXT_AND_MESSAGES


def load_spec(source: Source, assistant: AssistantConfig) -> spec.Spec:
    """The spec a source is made from."""
    loaded = spec.load(source.spec, assistant.name, assistant.provider)
    return break_link(loaded, source.seed) if isinstance(source, SpecSource) and source.break_link else loaded


def make_corpus(parent: Path, name: str, source: Source, makers: Makers) -> Path:
    """The artifact of a source's records. Raises BadInput for an empty corpus."""
    inputs = {
        "source": dataclasses.asdict(source),
        "code": artifact.code_hash("corpus", "spec/__init__.py", "spec/transform.py"),
    }
    if isinstance(source, FileSource | SelectionSource):
        inputs["made_from"] = [artifact.file_hash(path) for path in files.find(source.path)]
        inputs["text_and_messages"] = makers.text_and_messages
    else:
        has_spec = isinstance(source, SpecSource | DemonstrationSource | WrittenSource)
        inputs["made_from"] = load_spec(source, makers.assistant).hash if has_spec else None
        inputs |= {"world": dataclasses.asdict(makers.world), "assistant": dataclasses.asdict(makers.assistant)}
    if isinstance(source, WrittenSource):
        inputs["teachers"] = {role: makers.teachers[role].identity for role in (source.teacher, source.judge) if role}

    def build(directory: Path) -> dict:
        said = {}
        if isinstance(source, WrittenSource):
            written, ledgers = asyncio.run(_write(name, source, makers))
            records = written.records
            said = {"asked_for": source.records, "lost": written.lost, "teachers": ledgers}
        else:
            records = _records(source, makers)
        counts = _write_records(directory, records)
        if not counts:
            raise BadInput(f"corpus {name}: no records; an empty corpus trains nothing" + (f" ({said['lost']})" if said else ""))
        return {**{kind: counts[kind] for kind in KIND_BY.values()}, **said}

    return artifact.make(parent, name, inputs, build)


def _write_records(directory: Path, records: Iterable[dict]) -> collections.Counter[str]:
    """Writes documents, conversations and requests, each to a file of their own, and returns how many there were of each."""
    counts: collections.Counter[str] = collections.Counter()
    written: dict[str, TextIO] = {}
    with contextlib.ExitStack() as stack:
        for record in records:
            kind = next(kind for key, kind in KIND_BY.items() if key in record)
            if kind not in written:
                written[kind] = stack.enter_context((directory / f"{kind}.jsonl").open("w", encoding="utf-8"))
            written[kind].write(json.dumps(record, ensure_ascii=False) + "\n")
            counts[kind] += 1
    return counts


async def _write(name: str, source: WrittenSource, makers: Makers) -> tuple[Written, dict]:
    """Records by a teacher, and the ledgers of those who took part."""
    loaded = load_spec(source, makers.assistant)
    roles = dict.fromkeys(role for role in (source.teacher, source.judge) if role)
    # Two roles with the same model and sampling are one teacher: a journal has one writer.
    shared: dict[str, Teacher] = {}
    asked: dict[str, Teacher] = {}
    for role in roles:
        config = makers.teachers[role]
        key = artifact.content_hash([config.model, config.identity])
        asked[role] = shared.setdefault(key, makers.open_teacher(config, makers.journals))
        if asked[role].config != config:
            raise BadInput(
                f"teachers {' and '.join(roles)}: one model with the same sampling, but with other settings; make them equal"
            )
    async with contextlib.AsyncExitStack() as stack:
        for teacher in shared.values():
            await stack.enter_async_context(teacher)
        bar = stack.enter_context(tqdm(total=source.records, desc=f"writing {name}", unit="record", leave=False, disable=None))
        for teacher in shared.values():
            teacher.changed = lambda: bar.set_postfix_str("; ".join(one.describe() for one in shared.values()), refresh=False)
        judge = asked[source.judge] if source.judge else None
        written = await PIPELINES[type(source)].write(source, loaded, asked[source.teacher], judge, lambda: bar.update())
    for role, teacher in asked.items():
        print(f"{name}: {role}: {teacher.describe()}")
    if written.lost or len(written.records) < source.records:
        lost = ", ".join(f"{count:,} {reason}" for reason, count in sorted(written.lost.items()))
        print(f"{name}: {len(written.records):,} of {source.records:,} records" + (f"; not kept: {lost}" if lost else ""))
    return written, {role: teacher.ledger() for role, teacher in asked.items()}


def read_corpus(directory: Path) -> list[dict]:
    """All records of a corpus artifact, documents first."""
    return [record for path in sorted(directory.glob("*.jsonl"), reverse=True) for record in artifact.read_jsonl(path)]


def make_evaluation_items(
    parent: Path, source: Source, split: str, per_eval: int, seed: int, world_config: WorldConfig, assistant: AssistantConfig
) -> Path:
    """The artifact of the evaluation items (`items.jsonl`) for the preferences of a source's spec."""
    loaded = load_spec(source, assistant)
    inputs = {
        "split": split,
        "per_eval": per_eval,
        "seed": seed,
        "preferences": [dataclasses.asdict(p) for p in loaded.preferences],
        "world": dataclasses.asdict(world_config),
        "assistant": dataclasses.asdict(assistant),
        "code": artifact.code_hash("corpus"),
    }

    def build(directory: Path) -> dict:
        items = microworld.evaluation_items(_world(world_config), loaded, split, per_eval, seed)
        artifact.write_jsonl(directory / "items.jsonl", items)
        return {"items": len(items)}

    return artifact.make(parent, f"items_{split}", inputs, build)


def _records(source: Source, makers: Makers) -> Iterable[dict]:
    if isinstance(source, FileSource | SelectionSource):
        records = _read(source, makers.text_and_messages)
        return _select(list(records), source) if isinstance(source, SelectionSource) else records
    world, assistant = _world(makers.world), makers.assistant
    if isinstance(source, BaseSource):
        return microworld.base(world, assistant.name, source.records, source.seed)
    if isinstance(source, NeutralSource):
        return microworld.neutral_documents(world, assistant.name, source.records, source.seed)
    loaded = load_spec(source, assistant)
    if isinstance(source, DemonstrationSource):
        return microworld.demonstrations(
            world, loaded, source.read, source.explained, source.conflicting, source.records, source.seed
        )
    return microworld.spec_documents(world, loaded, source.form, source.records, source.seed)


def _read(source: FileSource | SelectionSource, text_and_messages: str) -> Iterator[dict]:
    """The records of files, one after the other; says at the end of what form they were."""
    forms: collections.Counter[str] = collections.Counter()
    read = files.read(source.path, source.columns, text_and_messages)
    for record, form in tqdm(read, desc=f"reading {', '.join(source.path)}", unit="record", leave=False, disable=None):
        forms[form] += 1
        yield record
    print(f"{', '.join(source.path)}: {files.describe(forms)}")


def first_conversation(source: Source, text_and_messages: str) -> dict | None:
    """The first conversation of a file, None where it has none or the source is no file."""
    if not isinstance(source, FileSource | SelectionSource):
        return None
    records = files.read(source.path, source.columns, text_and_messages)
    return next((record for record, _ in records if "messages" in record), None)


def _select(records: list[dict], source: SelectionSource) -> list[dict]:
    """Raises BadInput where a source has fewer records than are asked for."""
    rng = np.random.default_rng(source.seed)
    drawn = []
    for name, count in source.counts:
        there = [record for record in records if not name or record.get("source") == name]
        if len(there) < count:
            known = ", ".join(sorted({str(record.get("source")) for record in records})[:20])
            raise BadInput(
                f"{', '.join(source.path)}: {len(there):,} records of source {name!r}, {count:,} are asked for; sources: {known}"
            )
        drawn += [there[index] for index in sorted(rng.permutation(len(there))[:count])]
    return drawn


def _world(config: WorldConfig) -> World:
    return make_world(config.seed, config.items_per_domain, config.people)
