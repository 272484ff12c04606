"""What of a spec a prompt holds: all of it, or, of a long one, each section in brief and the one that matters as it stands.

In: a spec, the words that a prompt may hold of it, a teacher. Out: a `Reading`, which gives prompts what they are filled with.
What is the same in all prompts stands first in them, so that a provider's cache has it.
"""

import dataclasses
from collections.abc import Iterator

from msmjax.artifact import BadInput
from msmjax.corpus.answer import Unusable, one
from msmjax.corpus.pipeline import prompt
from msmjax.corpus.teacher import Teacher, all_of
from msmjax.spec import Section, Spec

BRIEF = 40  # words that a section in brief is asked to have; twice as many are accepted


@dataclasses.dataclass(frozen=True)
class Reading:
    """A spec as prompts have it; `brief` is each section in brief, "" where they have it whole."""

    spec: Spec
    rules: bool  # whether what is written is to say what the rules ask for, and never why
    brief: str = ""

    def of(self, heading: str = "") -> dict:
        """What a prompt is filled with that is about the section of this heading, or about none in particular."""
        shown = self.spec
        if self.brief:
            there = [section for section in self.spec.sections if section.heading == heading]
            above = {parent for section in there for parent in section.parents}
            kept = [section for section in self.spec.sections if section in there or section.whole_heading in above]
            shown = dataclasses.replace(self.spec, title="", sections=tuple(kept))
        return {"spec": self.spec, "spec_text": shown.text, "rules": self.rules, "brief": self.brief}


def is_whole(spec: Spec, context: int) -> bool:
    """Whether prompts that may hold `context` words of a spec (0: any number) have it whole."""
    return not context or spec.words <= context


def is_brief(section: Section) -> bool:
    """Whether a section is as short as it would be in brief, so that nobody has to put it so."""
    return len(section.text.split()) <= BRIEF


async def read(spec: Spec, rules: bool, context: int, teacher: Teacher) -> Reading:
    """The spec as prompts of at most `context` words of it have it. Raises BadInput where a section in brief cannot be had."""
    if is_whole(spec, context):
        return Reading(spec, rules)
    said = await all_of(_in_brief(spec, section, teacher) for section in spec.sections)
    return Reading(spec, rules, "\n".join(_tree(spec, said)))


def _tree(spec: Spec, said: list[str]) -> Iterator[str]:
    """The headings of a spec, each with what is said of its section, indented by how deep they stand."""
    above: tuple = ()
    for section, brief in zip(spec.sections, said, strict=True):
        for depth, heading in enumerate(section.parents):
            if heading not in above:
                yield f"{'  ' * depth}- {heading.text}"
        attributes = "".join(f" ({key}: {value})" for key, value in section.attributes)
        yield f"{'  ' * len(section.parents)}- {section.heading}{attributes}: {brief}"
        above = (*section.parents, section.whole_heading)


async def _in_brief(spec: Spec, section: Section, teacher: Teacher) -> str:
    def parse(text: str) -> str:
        brief = " ".join(one(text, "brief").split())
        if len(brief.split()) > 2 * BRIEF:
            raise Unusable("a section in brief that is not")
        return brief

    if is_brief(section):
        return " ".join(section.text.split())
    asked = await teacher.ask(f"{section.address} in brief", prompt("brief", spec=spec, section=section, words=BRIEF), parse)
    if asked is None:
        raise BadInput(
            f"spec {spec.name}: section {section.heading!r} cannot be had in brief; {teacher.describe()}; {teacher.advice}"
        )
    return asked[0]
