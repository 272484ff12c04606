"""Documents about a spec, written by a teacher in six steps (paper, appendix B.1): themes, topics, statements, kinds of document,
ideas, documents.

In: a spec, a teacher, a judge. Out: records with their provenance, the first so many of a fixed order that are fit: asked for more
of them, the same teacher's journal gives the same ones and then others. What could not be used is counted by reason.
"""

import collections
import dataclasses
import functools
import re
from collections.abc import Callable

from msmjax.artifact import BadInput
from msmjax.corpus.answer import Unusable, one
from msmjax.corpus.pipeline import Written, ask_votes, blocks, check_votes, choice, first_fit, majority, prompt
from msmjax.corpus.reading import Reading, read
from msmjax.corpus.teacher import Teacher, all_of
from msmjax.ranges import Count, Natural, Positive
from msmjax.spec import Section, Spec

MODES = ("default", "rules")
# What documents are spread over: themes that the teacher finds, or the spec's sections, equally or by their words.
COVERS = ("themes", "sections", "words")


@dataclasses.dataclass(frozen=True)
class DocumentSource:
    """Documents about a spec by a teacher. With mode "rules" they say what the rules ask for, and never why.

    `cover` is one of COVERS. Where sections are covered, those that `emphasis` names by an attribute of their heading, or of one
    above it, have so many times the documents: (("authority=root", 2.0),).
    """

    spec: str
    mode: str
    context: Natural  # words of the spec that a prompt may hold; a longer one is given in brief, but for what matters. 0: whole
    cover: str
    emphasis: tuple[tuple[str, Positive], ...]
    records: Count
    domains: Count  # themes of the spec, where they are what is covered
    subdomains: Count  # topics of a theme, or of a section
    doc_types: Count  # kinds of document for a topic
    ideas: Count  # asked for at a time, for each topic and kind
    rounds: Count  # times that ideas are asked for before the corpus ends short
    teacher: str
    judge: str  # who says whether a document is faithful and gives a reason; "" for nobody
    votes: Natural

    def __post_init__(self):
        if self.mode not in MODES:
            raise BadInput(f"mode={self.mode!r}: unknown; one of {', '.join(MODES)}")
        if self.cover not in COVERS:
            raise BadInput(f"cover={self.cover!r}: unknown; one of {', '.join(COVERS)}")
        if self.emphasis and self.cover == "themes":
            raise BadInput("emphasis: is on sections, and cover='themes' does not go by them; set cover to sections or words")
        if wrong := next((name for name, _ in self.emphasis if not re.fullmatch(r"[^=]+=[^=]+", name)), None):
            raise BadInput(f"emphasis: {wrong!r} is no attribute and its value, as in authority=root")
        check_votes(self.judge, self.votes)


@dataclasses.dataclass(frozen=True)
class Cell:
    """One kind of document about one topic."""

    domain: str
    subdomain: str
    context: str
    section: str
    assertions: tuple[dict, ...]
    doc_type: str = ""
    doc_type_description: str = ""


async def write(
    source: DocumentSource, spec: Spec, teacher: Teacher, judge: Teacher | None, advance: Callable[[], None]
) -> Written:
    """The documents. `advance` is called for each that is fit. Raises BadInput as `check` does."""
    check(source, spec)
    weights = weights_of(source, spec)
    ideas_of_section = source.subdomains * source.doc_types * source.ideas
    for heading, weight in weights.items():
        due = source.records * weight / sum(weights.values())
        if due > ideas_of_section:
            print(
                f"{spec.name}: section {heading!r} is due {due:,.0f} documents, and a round has {ideas_of_section:,} ideas for it; "
                "others take its place: raise subdomains, doc_types or ideas"
            )
    reading = await read(spec, source.mode == "rules", source.context, teacher)
    lost: collections.Counter[str] = collections.Counter()
    cells = await _cells(source, reading, teacher, lost)
    ideas: dict[Cell, list[dict]] = {cell: [] for cell in cells}

    async def round_of(number: int) -> list[tuple[Cell, dict]]:
        new = await all_of(_ideas(source, reading, teacher, cell, number, ideas[cell], lost) for cell in cells)
        for cell, found in zip(cells, new, strict=True):
            ideas[cell] += found
        # One idea of each topic and kind after another: the first so many documents are as broad as all of them.
        broad = [(cell, found[at]) for at in range(source.ideas) for cell, found in zip(cells, new, strict=True) if at < len(found)]
        return _in_proportion(broad, weights)

    async def finish(candidate: tuple[Cell, dict]) -> dict | None:
        cell, idea = candidate
        where = f"document {cell.domain} / {cell.subdomain} / {cell.doc_type} / {idea['name']}"
        said = reading.of(cell.section)
        asked = await teacher.ask(where, prompt("document", **said, cell=cell, idea=idea), _document)
        if asked is None:
            lost["no usable document"] += 1
            return None
        text, answer, key = asked
        verdicts = {}
        if judge is not None:
            votes = await ask_votes(judge, where, prompt("judge_document", **said, text=text), _verdicts, source.votes)
            if votes is None:
                lost["no usable verdict"] += 1
                return None
            verdicts = {name: majority(vote[name] for vote in votes) for name in votes[0]}
            if not verdicts["faithful"]:
                lost["judged unfaithful"] += 1
                return None
        advance()
        return {
            "id": key[:12], "text": text, "spec": spec.hash, "section": cell.section, "domain": cell.domain,
            "subdomain": cell.subdomain, "doc_type": cell.doc_type, "idea": idea["name"],
            "assertions": [assertion["name"] for assertion in cell.assertions], "teacher": answer.model, "prompt": key,
            "answer_tokens": answer.output_tokens, "verdicts": verdicts,
        }  # fmt: skip

    return Written(await first_fit(round_of, finish, source.records, source.rounds), dict(lost))


def check(source: DocumentSource, spec: Spec) -> None:
    """Raises BadInput where the spec lacks what the documents are about, or has no section that is to have more of them."""
    if source.mode == "rules" and not spec.rules:
        raise BadInput(f"spec {spec.name}: has no rules, which mode='rules' is about; see docs/specs.md")
    weights_of(source, spec)


def weights_of(source: DocumentSource, spec: Spec) -> dict[str, float]:
    """How many documents each section has, by its heading, in proportion; nothing where themes are covered. Raises BadInput for an
    emphasis that is on no section."""
    if source.cover == "themes":
        return {}
    weights: dict[str, float] = {}
    unused = dict(source.emphasis)
    for section in spec.sections:
        named = {f"{key}={value}" for heading in (*section.parents, section.whole_heading) for key, value in heading.attributes}
        weight = len(section.text.split()) if source.cover == "words" else 1.0
        for name, times in source.emphasis:
            if name in named:
                weight *= times
                unused.pop(name, None)
        weights[section.heading] = weights.get(section.heading, 0.0) + weight
    if unused:
        known = sorted({f"{key}={value}" for section in spec.sections for key, value in section.attributes})
        raise BadInput(
            f"emphasis: no section of spec {spec.name} has {next(iter(unused))}; they have {', '.join(known) or 'no attributes'}"
        )
    return weights


def _in_proportion(candidates: list[tuple[Cell, dict]], weights: dict[str, float]) -> list[tuple[Cell, dict]]:
    """The candidates in an order of which every beginning has about the sections' shares; as they are where there are none."""
    if not weights:
        return candidates
    seen: collections.Counter[str] = collections.Counter()
    due = []
    for cell, _ in candidates:
        due.append((seen[cell.section] + 0.5) / weights[cell.section])
        seen[cell.section] += 1
    return [candidates[at] for at in sorted(range(len(candidates)), key=due.__getitem__)]


async def _cells(source: DocumentSource, reading: Reading, teacher: Teacher, lost: collections.Counter) -> list[Cell]:
    """Steps 1 to 4. Without a topic there is nothing to write about: BadInput."""
    spec = reading.spec

    def topics(text: str, sections: list[Section]) -> list[dict]:
        found = blocks(text, "topic", ("name", "context", "section"), source.subdomains)
        if any(topic["section"] not in [section.heading for section in sections] for topic in found):
            raise Unusable("a section that the spec does not have")
        return found

    if source.cover == "themes":
        themes = functools.partial(blocks, name="theme", fields=("name", "description"), most=source.domains)
        asked = await teacher.ask("themes", prompt("domains", **reading.of(), count=source.domains), themes)
        if asked is None:
            raise BadInput(f"spec {spec.name}: no usable list of themes; {teacher.describe()}; {teacher.advice}")
        domains = [(domain, "", list(spec.sections)) for domain in asked[0]]
    else:
        by_heading = {section.heading: section for section in spec.sections}  # what stands twice is one
        domains = [
            ({"name": heading, "description": "all that this section says."}, heading, [section])
            for heading, section in by_heading.items()
        ]

    async def subdomains(domain: tuple[dict, str, list[Section]]) -> list[Cell]:
        theme, heading, sections = domain
        text = prompt("subdomains", **reading.of(heading), domain=theme, sections=sections, count=source.subdomains)
        parse = functools.partial(topics, sections=sections)
        asked = await teacher.ask(f"topics of {theme['name']}", text, parse)
        if asked is None:
            lost["no usable topics of a theme"] += 1
            return []
        bare = [Cell(theme["name"], topic["name"], topic["context"], topic["section"], ()) for topic in asked[0]]
        return [cell for found in await all_of(_kinds(source, reading, teacher, cell, lost) for cell in bare) for cell in found]

    by_topic = [cell for found in await all_of(map(subdomains, domains)) for cell in found]
    if not by_topic:
        raise BadInput(f"spec {spec.name}: no usable topic; {teacher.describe()}; {teacher.advice}")
    # Two themes may have the same topic, and the same prompts would give the same documents.
    by_topic = list({dataclasses.replace(cell, domain=""): cell for cell in reversed(by_topic)}.values())[::-1]
    # A kind of each topic after another, not all kinds of one topic first.
    seen: collections.Counter[tuple[str, str]] = collections.Counter()
    ranked = []
    for cell in by_topic:
        ranked.append((seen[cell.domain, cell.subdomain], len(ranked), cell))
        seen[cell.domain, cell.subdomain] += 1
    return [cell for _, _, cell in sorted(ranked, key=lambda entry: entry[:2])]


async def _kinds(source: DocumentSource, reading: Reading, teacher: Teacher, cell: Cell, lost: collections.Counter) -> list[Cell]:
    said = reading.of(cell.section)
    parse = functools.partial(blocks, name="assertion", fields=("name", "kind", "statement", "explanation"), most=6)
    asked = await teacher.ask(f"statements of {cell.subdomain}", prompt("assertions", **said, cell=cell), parse)
    if asked is None:
        lost["no usable statements of a topic"] += 1
        return []
    cell = dataclasses.replace(cell, assertions=tuple(map(_Frozen, asked[0])))
    parse = functools.partial(blocks, name="kind", fields=("name", "description"), most=source.doc_types)
    asked = await teacher.ask(f"kinds for {cell.subdomain}", prompt("doc_types", **said, cell=cell, count=source.doc_types), parse)
    if asked is None:
        lost["no usable kinds of document for a topic"] += 1
        return []
    return [dataclasses.replace(cell, doc_type=kind["name"], doc_type_description=kind["description"]) for kind in asked[0]]


async def _ideas(
    source: DocumentSource,
    reading: Reading,
    teacher: Teacher,
    cell: Cell,
    number: int,
    previous: list[dict],
    lost: collections.Counter,
) -> list[dict]:
    parse = functools.partial(blocks, name="proposal", fields=("name", "idea"), most=source.ideas)
    text = prompt("ideas", **reading.of(cell.section), cell=cell, count=source.ideas, previous=previous)
    asked = await teacher.ask(f"ideas {number + 1} for {cell.subdomain} / {cell.doc_type}", text, parse, number)
    if asked is None:
        lost["no usable ideas"] += 1
        return []
    used = {idea["name"].casefold() for idea in previous}
    return [idea for idea in asked[0] if idea["name"].casefold() not in used]


class _Frozen(dict):
    """A mapping that can be part of a key: cells are."""

    def __hash__(self):
        return hash(tuple(self.items()))


def _document(text: str) -> str:
    return one(text, "document")


def _verdicts(text: str) -> dict[str, bool]:
    return {name: choice(text, name, ("yes", "no")) == "yes" for name in ("faithful", "explains")}
