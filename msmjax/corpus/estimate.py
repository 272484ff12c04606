"""What a corpus by a teacher would take before anything is asked: calls, tokens and dollars.

In: a source's config, its spec, its teachers. Out: an `Estimate`. Tokens in are counted in the prompts themselves, four letters a
token; tokens out are what such answers have had (WRITTEN), and what is asked for again comes on top. What a prompt begins with that
was sent before is counted apart: most providers have it in a cache, at a tenth to a half of the price.
"""

import dataclasses
import math
from collections.abc import Iterator
from typing import NamedTuple

from msmjax.corpus import conversations, documents
from msmjax.corpus.conversations import IDENTITY_TOPICS, ConversationSource
from msmjax.corpus.documents import Cell, DocumentSource
from msmjax.corpus.pipeline import prompt
from msmjax.corpus.reading import BRIEF, Reading, is_brief, is_whole
from msmjax.corpus.requests import FIELDS, RequestSource
from msmjax.corpus.sources import WrittenSource
from msmjax.corpus.teacher_config import TeacherConfig
from msmjax.spec import Spec

LETTERS = 4  # of a token
# Tokens of an answer.
WRITTEN = {"brief": 60, "block": 50, "document": 1500, "thoughts": 300, "reply": 200, "verdict": 100, "case": 130}
CACHED = 0.1  # of the price, for what was sent before: the cheapest there is
ASSERTIONS = 5  # statements of a topic


class Step(NamedTuple):
    """Calls of one kind: who is asked, how often, with a prompt like `text`, of which `begins` letters are the same in all of
    `alike` calls, and how many tokens come back from each."""

    role: str
    calls: float
    text: str
    begins: int
    alike: float
    out: float


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Calls, tokens in, those of them that were sent before, tokens out, and dollars: all at the full price, and at the lowest."""

    calls: int
    tokens_in: int
    sent_before: int
    tokens_out: int
    dollars: float
    dollars_least: float


def estimate(source: WrittenSource, spec: Spec, teachers: dict[str, TeacherConfig]) -> Estimate:
    """What it would take from nothing, without what is asked for again. Raises BadInput as writing it would."""
    steps = {DocumentSource: _documents, ConversationSource: _conversations, RequestSource: _requests}[type(source)]
    calls = tokens_in = sent_before = tokens_out = dollars = least = 0.0
    for step in steps(source, spec):
        each, begin = len(step.text) / LETTERS, step.begins / LETTERS
        again = step.calls * begin * (1 - 1 / max(step.alike, 1))
        teacher = teachers[step.role]
        half = 0.5 if teacher.batch else 1.0
        price = half * (step.calls * each * teacher.input_price + step.calls * step.out * teacher.output_price) / 1e6
        calls, tokens_in, sent_before = calls + step.calls, tokens_in + step.calls * each, sent_before + again
        tokens_out, dollars = tokens_out + step.calls * step.out, dollars + price
        least += price - half * (1 - CACHED) * again * teacher.input_price / 1e6
    return Estimate(round(calls), round(tokens_in), round(sent_before), round(tokens_out), dollars, least)


def _reading(spec: Spec, rules: bool, context: int) -> Reading:
    """The spec as prompts will have it; in brief, in words that nobody has written yet."""
    brief = "\n".join(f"- {section.heading}: {'word ' * BRIEF}" for section in spec.sections)
    return Reading(spec, rules, "" if is_whole(spec, context) else brief)


def _briefs(reading: Reading, role: str) -> Iterator[Step]:
    for section in reading.spec.sections if reading.brief else ():
        if is_brief(section):
            continue
        yield Step(role, 1, prompt("brief", spec=reading.spec, section=section, words=BRIEF), 0, 1, WRITTEN["brief"])


def _typical(reading: Reading) -> tuple[str, int]:
    """The heading of the section that is nearest to the mean length, and how many sections there are."""
    sections = reading.spec.sections
    mean = sum(len(section.text) for section in sections) / len(sections)
    return min(sections, key=lambda section: abs(len(section.text) - mean)).heading, len(sections)


def _documents(source: DocumentSource, spec: Spec) -> Iterator[Step]:
    documents.check(source, spec)
    reading = _reading(spec, source.mode == "rules", source.context)
    heading, sections = _typical(reading)
    block, writer = WRITTEN["block"], source.teacher
    topics = (source.domains if source.cover == "themes" else sections) * source.subdomains
    cells = topics * source.doc_types
    rounds = min(math.ceil(source.records / (cells * source.ideas)), source.rounds)
    groups = sections if reading.brief else 1  # calls that have the same in front
    statement = {"name": "name", "statement": "word " * 15, "explanation": "word " * 15}
    cell = Cell("theme", "word " * 3, "word " * 30, heading, (statement,) * ASSERTIONS, "kind", "word " * 20)
    idea = {"name": "word " * 3, "idea": "word " * 30}
    said = reading.of(heading)
    begins = len(prompt("spec", **said))

    yield from _briefs(reading, writer)
    if source.cover == "themes":
        themes = prompt("domains", **reading.of(), count=source.domains)
        yield Step(writer, 1, themes, 0, 1, block * source.domains)
    about = reading.of(heading if source.cover != "themes" else "")
    told = {"domain": {"name": "word " * 3, "description": "word " * 20}, "sections": spec.sections, "count": source.subdomains}
    yield Step(writer, topics / source.subdomains, prompt("subdomains", **about, **told), begins, topics, block * source.subdomains)
    yield Step(writer, topics, prompt("assertions", **said, cell=cell), begins, topics / groups, block * ASSERTIONS)
    kinds = prompt("doc_types", **said, cell=cell, count=source.doc_types)
    yield Step(writer, topics, kinds, 0, 1, block * source.doc_types)
    ideas = prompt("ideas", **said, cell=cell, count=source.ideas, previous=[])
    yield Step(writer, cells * rounds, ideas, 0, 1, block * source.ideas)
    records = min(source.records, cells * source.ideas * source.rounds)
    yield Step(writer, records, prompt("document", **said, cell=cell, idea=idea), begins, records / groups, WRITTEN["document"])
    if source.judge:
        judged = prompt("judge_document", **said, text="word " * (WRITTEN["document"] * 3 // 4))
        yield Step(source.judge, records * source.votes, judged, begins, records * source.votes / groups, WRITTEN["verdict"])


def _conversations(source: ConversationSource, spec: Spec) -> Iterator[Step]:
    conversations.check(source, spec)
    about_spec = source.about == "spec"
    reading = _reading(spec, source.mode == "rules", source.context if about_spec else 0)
    heading, sections = _typical(reading)
    topics = {"spec": source.domains, "preferences": len(spec.preferences), "identity": len(IDENTITY_TOPICS)}[source.about]
    groups = min(sections, topics) if reading.brief else 1
    said = reading.of(heading)
    begins = len(prompt("spec", **said)) if about_spec else 0
    question, reply = "word " * 30, WRITTEN["reply"] + WRITTEN["thoughts"] * about_spec

    if about_spec:
        yield from _briefs(reading, source.teacher)
        situations = prompt("chat_domains", **reading.of(), count=source.domains)
        yield Step(source.teacher, 1, situations, 0, 1, WRITTEN["block"] * source.domains)
    rounds = min(math.ceil(source.records / max(topics * source.questions, 1)), source.rounds)
    asking = {"topic": "word " * 5, "liked": True, "count": source.questions, "previous": [question] * source.questions}
    asked = prompt(f"questions_{source.about}", **said, **asking)
    yield Step(source.teacher, topics * rounds, asked, begins, topics * rounds / groups, WRITTEN["block"] * source.questions)
    records = min(source.records, topics * source.questions * source.rounds)
    answered = prompt(f"answer_{source.about}", **said, question=question)
    yield Step(source.teacher, records, answered, begins, records / groups, reply)
    judged = prompt(f"judge_{source.about}", **said, conversation="word " * (reply * 3 // 4))
    yield Step(source.judge, records * source.votes, judged, begins, records * source.votes / groups, WRITTEN["verdict"])


def _requests(source: RequestSource, spec: Spec) -> Iterator[Step]:
    reading = _reading(spec, False, source.context)
    heading, sections = _typical(reading)
    groups = sections if reading.brief else 1
    said = reading.of(heading)
    begins, request = len(prompt("spec", **said)), "word " * 20

    yield from _briefs(reading, source.teacher)
    rounds = min(math.ceil(source.records / (sections * source.requests)), source.rounds)
    asked = prompt("requests", **said, topic=heading, count=source.requests, previous=[request] * source.requests)
    calls = sections * rounds
    yield Step(source.teacher, calls, asked, begins, calls / groups, WRITTEN["case"] * source.requests)
    records = min(source.records, calls * source.requests)
    judged = prompt("judge_requests", **said, case=dict.fromkeys(FIELDS, request))
    yield Step(source.judge, records * source.votes, judged, begins, records * source.votes / groups, WRITTEN["verdict"])
