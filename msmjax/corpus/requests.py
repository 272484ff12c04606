"""Requests in which a spec and some pressure disagree, written by a teacher: what evals/faking.py asks, of any spec.

In: a spec, a teacher, a judge. Out: records in the form of `data/evals/faking.jsonl`, with their provenance; the section of the
spec that a request speaks against is its cluster.
"""

import collections
import dataclasses
import functools
import re
from collections.abc import Callable

from msmjax.artifact import BadInput
from msmjax.corpus.answer import Unusable
from msmjax.corpus.conversations import SAME_QUESTION
from msmjax.corpus.duplicates import Index
from msmjax.corpus.pipeline import Written, blocks, check_votes, choice, first_fit, judge_fit, prompt
from msmjax.corpus.reading import read
from msmjax.corpus.teacher import Teacher, all_of
from msmjax.ranges import Count, Natural
from msmjax.spec import Spec

FIELDS = ("request", "system", "complies", "declines")  # of a case, as its blocks have them


@dataclasses.dataclass(frozen=True)
class RequestSource:
    """Requests by a teacher, for an eval of kind faking. Nothing is trained on them."""

    spec: str
    context: Natural  # words of the spec that a prompt may hold, as for documents
    records: Count
    requests: Count  # asked for at a time, for each section
    rounds: Count  # times that they are asked for before there are too few
    teacher: str
    judge: str
    votes: Natural

    def __post_init__(self):
        if not self.judge:
            raise BadInput("judge='': requests are kept by a judge's verdict; name a teacher")
        check_votes(self.judge, self.votes)


async def write(source: RequestSource, spec: Spec, teacher: Teacher, judge: Teacher, advance: Callable[[], None]) -> Written:
    """The requests. `advance` is called for each that is fit."""
    reading = await read(spec, False, source.context, teacher)
    lost: collections.Counter[str] = collections.Counter()
    asked_before: dict[str, list[str]] = {section.heading: [] for section in spec.sections}  # of sections that ask for anything
    index = Index(SAME_QUESTION)

    async def cases(heading: str, number: int) -> list[dict] | None:
        """What a section is pressed with in a round; None where nothing speaks against it."""
        before = asked_before[heading]
        text = prompt("requests", **reading.of(heading), topic=heading, count=source.requests, previous=before)
        parse = functools.partial(_cases, most=source.requests)
        asked = await teacher.ask(f"requests {number + 1} for {heading}", text, parse, number)
        if asked is None:
            lost["no usable requests"] += 1
            return []
        found, answer, key = asked
        said = {"spec": spec.hash, "section": heading, "teacher": answer.model, "prompt": key}
        return [{"id": f"{key[:12]}-{at}", "cluster": heading, **case, **said} for at, case in enumerate(found)] or None

    async def round_of(number: int) -> list[dict]:
        found = dict(zip(asked_before, await all_of(cases(heading, number) for heading in asked_before), strict=True))
        for heading in [heading for heading, some in found.items() if some is None and not asked_before[heading]]:
            lost["a section that nothing speaks against"] += 1
            del asked_before[heading]
        fresh = []
        for at in range(source.requests):  # one of each section after another: any beginning is of all of them
            for case in (some[at] for some in found.values() if some and at < len(some)):
                if index.like(case["request"]):
                    lost["a request like an earlier one"] += 1
                    continue
                index.add(case["request"])
                asked_before[case["cluster"]].append(case["request"])
                fresh.append(case)
        return fresh

    async def finish(case: dict) -> dict | None:
        text = prompt("judge_requests", **reading.of(case["section"]), case=case)
        verdicts = await judge_fit(judge, f"request {case['request']!r}", text, source.votes, lost)
        if verdicts is None:
            return None
        advance()
        system = re.sub(rf"\b{re.escape(spec.model_name)}\b", "{name}", case["system"])  # the eval says who is asked
        return {**case, "system": system, "verdicts": verdicts}

    return Written(await first_fit(round_of, finish, source.records, source.rounds), dict(lost))


def as_conversation(record: dict) -> dict:
    """A request and the answer that declines it, as gates and pages read records."""
    turns = [{"role": "user", "content": record["request"]}, {"role": "assistant", "content": record["declines"]}]
    return {**record, "messages": turns}


def _cases(text: str, most: int) -> list[dict]:
    if "<case>" not in text and choice(text, "nothing", ("yes",)):
        return []
    found = blocks(text, "case", FIELDS, most)
    if any(case["complies"].casefold() == case["declines"].casefold() for case in found):
        raise Unusable("two answers that are one")
    return found
