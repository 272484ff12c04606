"""Conversations written by a teacher: questions of several kinds without repetitions, answered, judged, and more of them until
there are enough (paper, appendix B.2).

In: a spec, a teacher, a judge. Out: records with their provenance. Three things they can be about: the spec, with reasoning; its
preferences alone, with no reason given (the narrow demonstrations of appendix C.2); and who the assistant is.
"""

import collections
import dataclasses
import functools
import re
from collections.abc import Callable

from msmjax.artifact import BadInput
from msmjax.corpus.answer import Unusable, one
from msmjax.corpus.documents import MODES
from msmjax.corpus.duplicates import Index
from msmjax.corpus.pipeline import Written, blocks, check_votes, first_fit, judge_fit, prompt
from msmjax.corpus.reading import Reading, read
from msmjax.corpus.teacher import Teacher, all_of
from msmjax.ranges import Count, Natural
from msmjax.spec import Spec

ABOUT = ("spec", "preferences", "identity")
IDENTITY_TOPICS = ("name", "maker", "nature", "adversarial", "casual")
SAME_QUESTION = 0.7  # Jaccard similarity of the letters' 5-grams from which on two questions are one


@dataclasses.dataclass(frozen=True)
class ConversationSource:
    """Conversations by a teacher. With `reasoning` the answers begin with their thoughts between <think> tags; without, the same
    rows lack them."""

    spec: str
    about: str
    mode: str
    context: Natural  # words of the spec that a prompt may hold, as for documents
    reasoning: bool
    records: Count
    domains: Count  # situations, where they are about the spec
    questions: Count  # asked for at a time, for each situation, preference or kind
    rounds: Count  # times that questions are asked for before the corpus ends short
    teacher: str
    judge: str
    votes: Natural

    def __post_init__(self):
        if self.about not in ABOUT:
            raise BadInput(f"about={self.about!r}: unknown; one of {', '.join(ABOUT)}")
        if self.mode not in MODES:
            raise BadInput(f"mode={self.mode!r}: unknown; one of {', '.join(MODES)}")
        if self.reasoning and self.about != "spec":
            raise BadInput(f"reasoning=True: conversations about {self.about} have none")
        if not self.judge:
            raise BadInput("judge='': conversations are kept by a judge's verdict; name a teacher")
        check_votes(self.judge, self.votes)


async def write(source: ConversationSource, spec: Spec, teacher: Teacher, judge: Teacher, advance: Callable[[], None]) -> Written:
    """The conversations. `advance` is called for each that is fit. Raises BadInput as `check` does."""
    check(source, spec)
    reading = await read(spec, source.mode == "rules", source.context if source.about == "spec" else 0, teacher)
    lost: collections.Counter[str] = collections.Counter()
    topics = await _topics(source, reading, teacher)
    asked_before: dict[str, list[str]] = {topic: [] for topic in topics}
    index = Index(SAME_QUESTION)

    async def round_of(number: int) -> list[tuple[str, dict]]:
        found = await all_of(
            _questions(source, reading.of(section), teacher, topic, number, asked_before[topic], lost)
            for topic, section in topics.items()
        )
        fresh = []
        for at in range(source.questions):
            for topic, questions in zip(topics, found, strict=True):
                if at < len(questions):
                    if index.like(questions[at]["user"]):
                        lost["a question like an earlier one"] += 1
                        continue
                    index.add(questions[at]["user"])
                    asked_before[topic].append(questions[at]["user"])
                    fresh.append((topic, questions[at]))
        return fresh

    async def finish(candidate: tuple[str, dict]) -> dict | None:
        topic, question = candidate
        where = f"answer to {question['user']!r}"
        parse = _with_thoughts if source.about == "spec" else _reply
        said = reading.of(topics[topic])
        asked = await teacher.ask(where, prompt(f"answer_{source.about}", **said, question=question["user"]), parse)
        if asked is None:
            lost["no usable answer"] += 1
            return None
        (thoughts, reply), answer, key = asked
        conversation = "\n\n".join(
            [f"User: {question['user']}", *([f"Thoughts: {thoughts}"] if thoughts else []), f"{spec.model_name}: {reply}"]
        )
        judged = prompt(f"judge_{source.about}", **said, conversation=conversation)
        verdicts = await judge_fit(judge, where, judged, source.votes, lost)
        if verdicts is None:
            return None
        advance()
        section = {"section": topics[topic]} if topics[topic] else {}
        content = f"<think>\n{thoughts}\n</think>\n\n{reply}" if source.reasoning else reply
        return {
            "id": key[:12], "messages": [{"role": "user", "content": question["user"]}, {"role": "assistant", "content": content}],
            "spec": spec.hash, **section, "domain": topic, "question_kind": question["kind"], "teacher": answer.model,
            "prompt": key, "answer_tokens": answer.output_tokens, "verdicts": verdicts,
        }  # fmt: skip

    return Written(await first_fit(round_of, finish, source.records, source.rounds), dict(lost))


def check(source: ConversationSource, spec: Spec) -> None:
    """Raises BadInput where the spec lacks what the conversations are about."""
    if source.about == "preferences" and not spec.preferences:
        raise BadInput(f"spec {spec.name}: states no preferences, which about='preferences' demonstrates; see docs/specs.md")
    if source.mode == "rules" and not spec.rules:
        raise BadInput(f"spec {spec.name}: has no rules, which mode='rules' is about; see docs/specs.md")


async def _questions(
    source: ConversationSource, said: dict, teacher: Teacher, topic: str, number: int, before: list[str], lost: collections.Counter
) -> list[dict]:
    liked = next((preference.likes for preference in said["spec"].preferences if preference.item == topic), None)
    text = prompt(f"questions_{source.about}", **said, topic=topic, liked=liked, count=source.questions, previous=before)
    parse = functools.partial(blocks, name="message", fields=("user", "kind"), most=source.questions)
    asked = await teacher.ask(f"questions {number + 1} for {topic}", text, parse, number)
    if asked is None:
        lost["no usable questions"] += 1
    return [] if asked is None else asked[0]


async def _topics(source: ConversationSource, reading: Reading, teacher: Teacher) -> dict[str, str]:
    """What questions are asked for: situations, items of preferences, or kinds of identity question; and for a situation, where
    the spec is given in brief, the heading of the section that it rests on."""
    if source.about == "preferences":
        return dict.fromkeys((preference.item for preference in reading.spec.preferences), "")
    if source.about == "identity":
        return dict.fromkeys(IDENTITY_TOPICS, "")
    headings = [section.heading for section in reading.spec.sections]

    def parse(text: str) -> dict[str, str]:
        found = blocks(text, "situation", ("name", "section") if reading.brief else ("name",), source.domains)
        if any(topic.get("section", headings[0]) not in headings for topic in found):
            raise Unusable("a section that the spec does not have")
        return {topic["name"]: topic.get("section", "") for topic in found}

    asked = await teacher.ask("situations", prompt("chat_domains", **reading.of(), count=source.domains), parse)
    if asked is None:
        raise BadInput(f"spec {reading.spec.name}: no usable list of situations; {teacher.describe()}; {teacher.advice}")
    return asked[0]


def _with_thoughts(text: str) -> tuple[str, str]:
    """The thoughts and the reply: one block of each, the thoughts first, nothing else, no tags inside.

    They are not asked for between <think> tags, which Inspect AI and many servers cut out of an answer.
    """
    match = re.fullmatch(r"\s*<thoughts>(.*?)</thoughts>\s*<reply>(.*?)</reply>\s*", text, re.DOTALL)
    if match is None:
        one(text, "reply")  # raises with the reason, where it is one of the usual
        raise Unusable("no whole <thoughts> before the reply")
    thoughts, reply = match[1].strip(), match[2].strip()
    if not thoughts or not reply:
        raise Unusable("empty <thoughts> or <reply>")
    return thoughts, _without_tags(reply, thoughts)


def _reply(text: str) -> tuple[str, str]:
    return "", _without_tags(one(text, "reply"))


def _without_tags(reply: str, thoughts: str = "") -> str:
    """A stray tag would be trained on, or split the answer where a chat template looks for it."""
    if re.search(r"</?(think|thoughts|reply)>", reply + thoughts):
        raise Unusable("a tag inside the answer")
    return reply
