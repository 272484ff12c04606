"""Documents about a spec, written by a teacher in six steps (paper, appendix B.1): themes, topics, statements, kinds of document,
ideas, documents.

In: a spec, a teacher, a judge. Out: records with their provenance, the first so many of a fixed order that are fit: asked for more
of them, the same teacher's journal gives the same ones and then others. What could not be used is counted by reason.
"""

import collections
import dataclasses
import functools
from collections.abc import Callable

from msmjax.artifact import BadInput
from msmjax.corpus.answer import Unusable, one
from msmjax.corpus.pipeline import Written, ask_votes, blocks, check_votes, choice, first_fit, majority, prompt
from msmjax.corpus.teacher import Teacher, all_of
from msmjax.spec import Spec

MODES = ("default", "rules")


@dataclasses.dataclass(frozen=True)
class DocumentSource:
    """Documents about a spec by a teacher. With mode "rules" they say what the rules ask for, and never why."""

    spec: str
    mode: str
    records: int
    domains: int  # themes of the spec
    subdomains: int  # topics of a theme
    doc_types: int  # kinds of document for a topic
    ideas: int  # asked for at a time, for each topic and kind
    rounds: int  # times that ideas are asked for before the corpus ends short
    teacher: str
    judge: str  # who says whether a document is faithful and gives a reason; "" for nobody
    votes: int

    def __post_init__(self):
        if self.mode not in MODES:
            raise BadInput(f"mode={self.mode!r}: unknown; one of {', '.join(MODES)}")
        for name in ("records", "domains", "subdomains", "doc_types", "ideas", "rounds"):
            if getattr(self, name) < 1:
                raise BadInput(f"{name}={getattr(self, name)}: must be at least 1")
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
    """The documents. `advance` is called for each that is fit. Raises BadInput for mode "rules" without rules in the spec."""
    rules = source.mode == "rules"
    if rules and not spec.rules:
        raise BadInput(f"spec {spec.name}: has no rules, which mode='rules' is about; see docs/specs.md")
    said = {"spec": spec, "spec_text": spec.text, "rules": rules}
    lost: collections.Counter[str] = collections.Counter()
    cells = await _cells(source, said, teacher, lost)
    ideas: dict[Cell, list[dict]] = {cell: [] for cell in cells}

    async def round_of(number: int) -> list[tuple[Cell, dict]]:
        new = await all_of(_ideas(source, said, teacher, cell, number, ideas[cell], lost) for cell in cells)
        for cell, found in zip(cells, new, strict=True):
            ideas[cell] += found
        # One idea of each topic and kind after another: the first so many documents are as broad as all of them.
        return [(cell, found[at]) for at in range(source.ideas) for cell, found in zip(cells, new, strict=True) if at < len(found)]

    async def finish(candidate: tuple[Cell, dict]) -> dict | None:
        cell, idea = candidate
        where = f"document {cell.domain} / {cell.subdomain} / {cell.doc_type} / {idea['name']}"
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


async def _cells(source: DocumentSource, said: dict, teacher: Teacher, lost: collections.Counter) -> list[Cell]:
    """Steps 1 to 4. Without a topic there is nothing to write about: BadInput."""
    headings = {section.heading for section in said["spec"].sections}

    def topics(text: str) -> list[dict]:
        found = blocks(text, "topic", ("name", "context", "section"), source.subdomains)
        if any(topic["section"] not in headings for topic in found):
            raise Unusable("a section that the spec does not have")
        return found

    themes = functools.partial(blocks, name="theme", fields=("name", "description"), most=source.domains)
    asked = await teacher.ask("themes", prompt("domains", **said, count=source.domains), themes)
    if asked is None:
        raise BadInput(f"spec {said['spec'].name}: no usable list of themes; {teacher.describe()}; {teacher.advice}")
    domains = asked[0]

    async def subdomains(domain: dict) -> list[Cell]:
        where = f"topics of {domain['name']}"
        asked = await teacher.ask(where, prompt("subdomains", **said, domain=domain, count=source.subdomains), topics)
        if asked is None:
            lost["no usable topics of a theme"] += 1
            return []
        bare = [Cell(domain["name"], topic["name"], topic["context"], topic["section"], ()) for topic in asked[0]]
        return [cell for found in await all_of(_kinds(source, said, teacher, cell, lost) for cell in bare) for cell in found]

    by_topic = [cell for found in await all_of(map(subdomains, domains)) for cell in found]
    if not by_topic:
        raise BadInput(f"spec {said['spec'].name}: no usable topic; {teacher.describe()}; {teacher.advice}")
    # Two themes may have the same topic, and the same prompts would give the same documents.
    by_topic = list({dataclasses.replace(cell, domain=""): cell for cell in reversed(by_topic)}.values())[::-1]
    # A kind of each topic after another, not all kinds of one topic first.
    seen: collections.Counter[tuple[str, str]] = collections.Counter()
    ranked = []
    for cell in by_topic:
        ranked.append((seen[cell.domain, cell.subdomain], len(ranked), cell))
        seen[cell.domain, cell.subdomain] += 1
    return [cell for _, _, cell in sorted(ranked, key=lambda entry: entry[:2])]


async def _kinds(source: DocumentSource, said: dict, teacher: Teacher, cell: Cell, lost: collections.Counter) -> list[Cell]:
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
    source: DocumentSource, said: dict, teacher: Teacher, cell: Cell, number: int, previous: list[dict], lost: collections.Counter
) -> list[dict]:
    parse = functools.partial(blocks, name="proposal", fields=("name", "idea"), most=source.ideas)
    text = prompt("ideas", **said, cell=cell, count=source.ideas, previous=previous)
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
