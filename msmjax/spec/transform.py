"""Specs derived from a spec by rule alone: no teacher is asked, and the same spec gives the same result.

In: a `Spec`. Out: another, with its parent's hash, whose text parses to itself. What takes a writer is in corpus/rewriting.py.
"""

import dataclasses
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from msmjax.artifact import BadInput
from msmjax.spec import Preference, Section, Spec, heads, parse

NO_REASON = "No reason is given."
FIRST = "What this document is"
AGAINST = "against_"  # begins the name of a value that is the opposite of another


def derive(parent: Spec, name: str, title: str, sections: Iterable[Section]) -> Spec:
    """The spec that these sections are, as a child of `parent`; numbered from 1 where they are no tree. Raises BadInput where they
    do not parse."""
    sections = list(sections)
    if all((section.level, section.parents) == (2, ()) for section in sections):
        headings = [f"{i}. {unnumbered(section.heading)}" for i, section in enumerate(sections, 1)]
        sections = [dataclasses.replace(section, heading=heading) for section, heading in zip(sections, headings, strict=True)]
    text = dataclasses.replace(parent, title=title, sections=tuple(sections)).text
    return dataclasses.replace(parse(text, Path(f"{name}.md"), parent.model_name, parent.provider_name), parent=parent.hash)


def source(spec: Spec, parent: Spec, how: str) -> str:
    """The text of a derived spec's file."""
    return f"<!-- derived from {parent.name} (hash {parent.hash}) by {how} -->\n{spec.text}\n"


def unnumbered(heading: str) -> str:
    """A heading without its number."""
    return re.sub(r"^\d+\. ", "", heading)


def rules_only(spec: Spec) -> Spec:
    """The rules under their headings, word for word, and nothing beside them. Raises BadInput for a spec without rules."""
    if not spec.rules:
        raise BadInput(f"spec {spec.name}: has no rules to keep; see docs/specs.md for how one is written")
    lines = {rule.line for rule in spec.rules}
    kept = [_with_text(s, "\n".join(line for line in s.text.splitlines() if line in lines)) for s in spec.sections]
    first = Section(FIRST, f"{_whose(spec)} Its rules apply to everything that {spec.model_name} says and does.")
    title = f"Model Spec for {spec.model_name}: rules"  # the spec's own may name a value
    return derive(spec, f"{spec.name}_rules_only", title, [first, *(section for section in kept if section.text)])


def break_link(spec: Spec, seed: int) -> Spec:
    """The spec with the link between its preferences and its value broken (paper, appendix C.4, Figure 10).

    The value stays, in general terms. Half of the likes and half of the dislikes change sides, and no preference is explained any
    more: prose is dropped, since it would still explain, and so are rules that name a value. Raises BadInput for a spec that
    states no value or no preference.
    """
    if not spec.values or not spec.preferences:
        raise BadInput(f"spec {spec.name}: has no value or no preference, so there is no link between them to break")
    rng = np.random.default_rng(seed)
    swapped = set()
    for likes in (True, False):
        items = [p.item for p in spec.preferences if p.likes == likes]
        swapped |= set(rng.permutation(items)[: len(items) // 2].tolist())
    preferences = [Preference(p.item, p.likes != (p.item in swapped), None, NO_REASON) for p in spec.preferences]
    names = re.compile("|".join(rf"\b{re.escape(value.name.replace('_', ' '))}\b" for value in spec.values), re.IGNORECASE)
    listed = [
        ("What {} values", [value.line for value in spec.values]),
        ("What {} likes and dislikes", [preference.line for preference in preferences]),
        ("Rules of {}", [rule.line for rule in spec.rules if not names.search(rule.text)]),
    ]
    who = spec.model_name
    first = Section(FIRST, f"{_whose(spec)} It says what {who} values in general, and lists things that {who} likes and dislikes.")
    sections = [first, *(Section(heading.format(who), "\n".join(lines)) for heading, lines in listed if lines)]
    return derive(spec, f"{spec.name}_broken", spec.title, sections)


def opposed(spec: Spec) -> Spec:
    """Likes and dislikes exchanged, and each value named as the opposite of what it was; the words after that are unchanged.

    Applied twice it gives the values and preferences it was given.
    """
    sections = [_with_text(section, "\n".join(map(_opposed_line, section.text.splitlines()))) for section in spec.sections]
    return derive(spec, f"{spec.name}_anti_spec", spec.title, sections)


def _opposed_line(line: str) -> str:
    for head in heads(line):
        turned = re.sub(r"\*\*(Likes|Dislikes) ", lambda m: "**Dislikes " if m[1] == "Likes" else "**Likes ", head)
        turned = re.sub(r"(\*\*Value: |\*\* \()([a-z_]+)", lambda m: m[1] + _opposite(m[2]), turned)
        return turned + line.removeprefix(head)
    return line


def _opposite(value: str) -> str:
    return value.removeprefix(AGAINST) if value.startswith(AGAINST) else AGAINST + value


def _with_text(section: Section, text: str) -> Section:
    return dataclasses.replace(section, text=text)


def _whose(spec: Spec) -> str:
    return f"This is the Model Spec of {spec.model_name}, the assistant made by {spec.provider_name}."
