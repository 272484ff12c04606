"""Specs derived from a spec by a teacher: explained, spelled out, generalized, opposed, said in another form.

In: an unfilled `Spec` and a teacher. Out: another, with its parent's hash. The teacher writes rule by rule or section by section,
and an answer that loses a rule, a value or a preference, or has gaps, is asked for again: what a result must hold is checked here.
"""

import dataclasses
import functools
import re
from collections.abc import Awaitable, Callable
from typing import TypeVar

from msmjax.artifact import BadInput
from msmjax.corpus.answer import Unusable, one
from msmjax.corpus.pipeline import blocks, prompt
from msmjax.corpus.teacher import Teacher, all_of
from msmjax.spec import Draft, Rule, Section, Spec, Value, heads, scan
from msmjax.spec.lint import gaps, unknown_rules
from msmjax.spec.transform import derive, opposed, unnumbered

T = TypeVar("T")
TOLERANCE = 0.05  # by which the words of a length-matched spec may differ from those it is matched to
WORDS = 120  # below a rule, where no length is to be matched
FEWEST_WORDS = 10  # below a rule, that are worth asking for
VALUES_HEADING = "The values behind the rules"


@dataclasses.dataclass(frozen=True)
class Framing:
    """A form of speech: how the teacher is told, who titles then speak of, what must not occur and, where {model_name} did, what
    must."""

    form: str
    who: str
    wrong: str
    needed: str


FRAMINGS = {
    "should": Framing(
        "what {model_name} is, does or wants becomes what {model_name} should be, do or want. Each sentence that begins with "
        "{model_name} has the word should.",
        "{model_name}",
        r"(?m)(?:^|[.!?:*]\s)\{model_name\}\s(?![^.!?]*\bshould\b)",
        r"\bshould\b",
    ),
    "does": Framing(
        "what {model_name} should or must be, do or want becomes what {model_name} is, does or wants, in the present tense.",
        "{model_name}",
        r"\{model_name\}\s(?:\w+\s)?(?:should|must|ought|shall)\b",
        r"\{model_name\}",
    ),
    "assistants": Framing(
        "what is said of {model_name} is said of AI assistants, in the plural, of all of them. {model_name} does not occur.",
        "AI assistants",
        r"\{model_name\}",
        r"\bassistants\b",
    ),
    "one": Framing(
        'what is said of {model_name} is said of "one", as in "one keeps a promise". {model_name} does not occur.',
        "anyone",
        r"\{model_name\}",
        r"\b[Oo]ne\b",
    ),
}


async def value_augmented(spec: Spec, teacher: Teacher, words: int | None) -> Spec:
    """The spec with a text below each rule that explains it by a value; values are stated first, where the spec states none.

    With `words`, the whole has so many, within TOLERANCE. Raises BadInput for a spec without rules, and where the teacher's answers
    cannot be used or do not come to the right length.
    """
    _check_rules(spec)
    values, sections = list(spec.values), list(spec.sections)
    if not values:
        text = prompt("rewrite_values", spec=spec)
        values = await _ask(spec, teacher, "the values behind its rules", text, functools.partial(_values, spec))
        at = next(index for index, section in enumerate(sections) if _scan(spec, section.text).rules)
        lines = "\n\n".join(value.line for value in values)
        sections.insert(at, Section(VALUES_HEADING, lines, sections[at].level or 2, parents=sections[at].parents))
    return await _augmented(spec, "value_augmented", sections, values, teacher, words)


async def rules_augmented(spec: Spec, teacher: Teacher, words: int | None) -> Spec:
    """The spec with a text below each rule that spells it out and gives no reason. As `value_augmented` otherwise."""
    _check_rules(spec)
    return await _augmented(spec, "rules_augmented", list(spec.sections), [], teacher, words)


async def general(spec: Spec, teacher: Teacher) -> Spec:
    """The spec in principles alone: its values stay, its rules and preferences go. Raises BadInput for unusable answers."""

    def kept(section: Section) -> list[str]:
        return [head for head in heads(section.text) if head.startswith("**Value")]

    def check(section: Section, answer: Section) -> None:
        for preference in spec.preferences:
            if re.search(rf"\b{re.escape(preference.item)}\b", answer.text, re.IGNORECASE):
                raise Unusable(f"names {preference.item}")
        for rule in spec.rules:
            if re.search(rf"\b{rule.id}\b", answer.text):
                raise Unusable(f"names rule {rule.id}")

    return derive(spec, f"{spec.name}_general", spec.title, await _by_section(spec, "general", teacher, kept, check))


async def anti_spec(spec: Spec, teacher: Teacher) -> Spec:
    """The spec of the opposite: preferences change sides by rule, the teacher turns all that is said. Raises BadInput for unusable
    answers."""
    turned = dict(zip(spec.sections, opposed(spec).sections, strict=True))

    def kept(section: Section) -> list[str]:
        return heads(turned[section].text)

    def check(section: Section, answer: Section) -> None:
        before, after = _scan(spec, section.text), _scan(spec, answer.text)
        said = {rule.text for _, rule in before.rules} | {value.statement for _, value in before.values}
        for text in (*(rule.text for _, rule in after.rules), *(value.statement for _, value in after.values)):
            if text in said:
                raise Unusable(f"not turned: {text}")

    title = f"Model Spec for {spec.model_name}"  # the parent's may name a value
    return derive(spec, f"{spec.name}_anti_spec", title, await _by_section(spec, "anti_spec", teacher, kept, check))


async def framing(spec: Spec, teacher: Teacher, name: str) -> Spec:
    """The spec said in another of FRAMINGS. Raises BadInput for unusable answers."""
    form = FRAMINGS[name]

    def kept(section: Section) -> list[str]:
        return heads(section.text)

    def check(section: Section, answer: Section) -> None:
        # A wrapped line does not begin a sentence.
        text = f"## {unnumbered(answer.heading)}\n\n" + re.sub(r"(?<!\n)\n(?!\n|- |\*\*)", " ", answer.text)
        if match := re.search(form.wrong, text):
            raise Unusable(f"not said as {name!r}: {' '.join(text[match.start() :].split()[:6])} ...")
        if spec.model_name in section.text and not re.search(form.needed, text):
            raise Unusable(f"not said as {name!r}")

    title = spec.title.replace(spec.model_name, form.who)
    sections = await _by_section(spec, "framing", teacher, kept, check, form=form.form)
    return derive(spec, f"{spec.name}_framing_{name}", title, sections)


async def _by_section(
    spec: Spec,
    how: str,
    teacher: Teacher,
    kept: Callable[[Section], list[str]],
    check: Callable[[Section, Section], None],
    **said: str,
) -> list[Section]:
    """Each section rewritten, where it stands in the tree. `kept` gives the heads of lines that must stand in it, `check` raises
    Unusable for other faults."""

    async def rewrite(section: Section) -> Section:
        def parse(text: str) -> Section:
            written, number = unnumbered(" ".join(one(text, "heading").split())), section.heading.removesuffix(heading)
            whole = section.heading if section.level == 0 else number + written
            answer = dataclasses.replace(section, heading=whole, text=one(text, "section"))
            _check_text(spec, f"{answer.heading}\n\n{answer.text}", kept(section))
            check(section, answer)
            return answer

        heading = unnumbered(section.heading)
        text = prompt(f"rewrite_{how}", spec=spec, section=section, heading=heading, heads=kept(section), **said)
        return await _ask(spec, teacher, f"section {section.heading!r}", text, parse)

    written = await all_of(map(rewrite, spec.sections))
    # Headings above a section that have a text of their own are called otherwise now.
    called = {old.whole_heading: new.whole_heading for old, new in zip(spec.sections, written, strict=True)}
    return [dataclasses.replace(new, parents=tuple(called.get(above, above) for above in new.parents)) for new in written]


async def _augmented(
    spec: Spec, how: str, sections: list[Section], values: list[Value], teacher: Teacher, words: int | None
) -> Spec:
    """`sections` with a text below each rule, all together of so many words."""

    def parse(text: str) -> str:
        below = one(text, "below")
        _check_text(spec, below, [])
        return below

    def ask(rule: Rule, words: int, previous: str, version: int) -> Awaitable[str]:
        said = {"words": words, "previous": previous, "previous_words": len(previous.split())}
        text = prompt(f"rewrite_{how}", spec=spec, values=values, rule=rule.line, **said)
        return _ask(spec, teacher, f"rule {rule.id}", text, parse, version)

    def whole(below: dict[Rule, str]) -> Spec:
        return derive(spec, f"{spec.name}_{how}", spec.title, [_with_below(section, below) for section in sections])

    bare = whole(dict.fromkeys(spec.rules, "")).words
    each = WORDS if words is None else round((words - bare) / len(spec.rules))
    if each < FEWEST_WORDS:
        raise BadInput(
            f"--match: {words:,} words in all, of which {bare:,} stand there already: too few for {len(spec.rules)} rules"
        )
    below = dict.fromkeys(spec.rules, "")
    for version in range(teacher.config.tries):
        again = [rule for rule, text in below.items() if abs(len(text.split()) - each) > TOLERANCE * each]
        below |= zip(again, await all_of(ask(rule, each, below[rule], version) for rule in again), strict=True)
        made = whole(below)
        if words is None or abs(made.words - words) <= TOLERANCE * words:
            return made
    raise BadInput(
        f"spec {spec.name}: {made.words:,} words after {teacher.config.tries} versions, {words:,} were to be matched within "
        f"{TOLERANCE:.0%}; all answers are kept: raise the teacher's tries, or match another spec"
    )


def _with_below(section: Section, below: dict[Rule, str]) -> Section:
    of_line = {rule.line: text for rule, text in below.items()}
    lines = [f"{line}\n\n{of_line[line]}\n" if line in of_line else line for line in section.text.splitlines()]
    return dataclasses.replace(section, text=re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip())


async def _ask(spec: Spec, teacher: Teacher, what: str, text: str, parse: Callable[[str], T], version: int = 0) -> T:
    """What `parse` makes of an answer. A spec that lacks a part is none: BadInput where no answer can be used."""
    asked = await teacher.ask(f"{what} of {spec.name}", text, parse, version)
    if asked is None:
        reasons = ", ".join(teacher.unusable)
        raise BadInput(
            f"spec {spec.name}: {what}: none of {teacher.config.tries} answers can be used; unusable so far: {reasons}; "
            "all answers are kept: raise the teacher's tries"
        )
    return asked[0]


def _check_rules(spec: Spec) -> None:
    if not spec.rules:
        raise BadInput(f"spec {spec.name}: has no rules to write about; see docs/specs.md for how one is written")


def _check_text(spec: Spec, text: str, kept: list[str]) -> None:
    """Raises Unusable for a text that is no part of a spec, or whose values, preferences and rules are not those of `kept`."""
    found = heads(text)
    if lost := [head for head in kept if head not in found]:
        raise Unusable(f"lost {lost[0]}")
    if found != kept:
        raise Unusable(f"has {next((head for head in found if head not in kept), 'its lines in another order')}")
    draft = _scan(spec, text)
    if draft.title or len(draft.headings) > 1:
        raise Unusable("has a heading in it")
    wrong = [message for _, message in draft.errors] + gaps(text) + unknown_rules(text, {rule.id for rule in spec.rules})
    if wrong:
        raise Unusable(wrong[0])


def _scan(spec: Spec, text: str) -> Draft:
    return scan(f"## x\n{text}", spec.model_name, spec.provider_name)


def _values(spec: Spec, text: str) -> list[Value]:
    values = [Value(**block) for block in blocks(text, "value", ("name", "statement"), most=6)]
    for value in values:
        if heads(value.line) != [f"**Value: {value.name}.**"]:
            raise Unusable("the name of a value is not in lower case with underscores")
        _check_text(spec, value.statement, [])
    return values
