"""All that is wrong with a spec's file, at once.

In: the text of a file. Out: findings with their lines. Errors are what `parse` refuses, and the assistant's name where one asked to
look for it; warnings are what some use of the spec would miss, or what may be meant: gaps nobody filled, a rule that is not there.
"""

import dataclasses
import re
from collections.abc import Collection, Iterator

from msmjax.spec import PLACEHOLDERS, Draft, faults, scan
from msmjax.spec.transform import unnumbered

KNOWN = ", ".join(f"{{{name}}}" for name in PLACEHOLDERS)


@dataclasses.dataclass(frozen=True, order=True)
class Finding:
    line: int
    is_error: bool
    message: str


def lint(source: str, names: Collection[str] = ()) -> list[Finding]:
    """Findings in the order of lines. `names` are of assistants that the text must call {model_name}."""
    draft = scan(source, "{model_name}", "{provider_name}")
    rules = {rule.id for _, rule in draft.rules}
    errors, warnings = faults(draft), list(_doubtful(draft))
    if not draft.title:
        warnings.append((1, "no title; documents are told the file's name. One is a single '# ' heading at the top"))
    for number, line in draft.prose:
        warnings += [(number, message) for message in (*gaps(line), *unknown_rules(line, rules))]
        if re.match(r"##?[^#\s]|##?\s*$", line):
            warnings.append((number, "looks like a heading and is read as text; one is '## ', and then its text"))
    for number, line in enumerate(source.splitlines(), 1):
        for name in names:
            if re.search(rf"\b{re.escape(name)}\b", line):
                errors.append((number, f"the assistant is called {name}; write {{model_name}}"))
    findings = [Finding(line, True, message) for line, message in errors]
    findings += [Finding(line, False, message) for line, message in warnings]
    return sorted(findings)


def gaps(text: str) -> list[str]:
    """What in a text is still to be filled in."""
    messages = [f"{word} is left to do" for word in re.findall(r"\b(?:TODO|FIXME|TBD|XXX)\b", text)]
    # A Markdown link's text is in brackets too; (address) or [label] follows it.
    messages += [f"{gap} is a gap to be filled in" for gap in re.findall(r"\[[A-Za-z][^\]]*\](?![(\[:])", text)]
    slots = [slot for slot in re.findall(r"\{([a-z_]+)\}", text) if slot not in PLACEHOLDERS]
    messages += [f"{{{slot}}} is no placeholder and stays as it is; known: {KNOWN}" for slot in slots]
    if re.search(r"[{}]", re.sub(r"\{[^{}]*\}", "", text)):
        messages.append(f"a brace without its partner; placeholders are {KNOWN}")
    return messages


def unknown_rules(text: str, rules: Collection[str]) -> list[str]:
    """What a text calls a rule and is none: an id after the word rule or see, or one that begins as the ids of `rules` do."""
    called = re.findall(r"\b(?:[Rr]ules?|[Ss]ee) ([A-Z]+\d+)\b", text)
    prefixes = {rule.rstrip("0123456789") for rule in rules}
    called += [word for word in re.findall(r"\b[A-Z]+\d+\b", text) if word.rstrip("0123456789") in prefixes]
    return [f"refers to rule {name}, which the spec does not have" for name in dict.fromkeys(called) if name not in rules]


def _doubtful(draft: Draft) -> Iterator[tuple[int, str]]:
    with_text = {section.whole_heading for _, section in draft.sections}
    seen, names, before = set(), {}, 0
    for at, (line, heading) in enumerate(draft.headings):
        holds_more = at + 1 < len(draft.headings) and draft.headings[at + 1][1].level > heading.level
        if heading not in with_text and not holds_more and heading.text != draft.title:
            yield line, f"section {heading.text!r} is empty"
        if heading.level == 1 and heading.text == draft.title:
            continue
        if heading.text in seen:
            yield line, f"heading {heading.text!r} stands there twice; records could not tell the sections apart"
        seen.add(heading.text)
        bare = unnumbered(heading.text).casefold()
        if names.setdefault(bare, heading.text) != heading.text:
            yield line, f"heading {heading.text!r} differs from {names[bare]!r} by its number alone"
        if heading.level == 2 and (match := re.match(r"(\d+)\. ", heading.text)):
            if int(match[1]) != before + 1:
                yield line, f"heading is number {match[1]}, and number {before + 1} was expected"
            before = int(match[1])
    for line, value in draft.values:
        word = re.compile(rf"\b{re.escape(value.name.replace('_', ' '))}\b", re.IGNORECASE)
        explains = any(preference.value == value.name for _, preference in draft.preferences)
        if not explains and not any(word.search(text) for number, text in draft.prose if number != line):
            yield line, f"value {value.name!r} explains no preference and is named nowhere else"
    for line, preference in draft.preferences:
        if preference.value is None:
            yield line, f"preference for {preference.item}: no value explains it"
    read = {line for line, _ in (*draft.values, *draft.preferences, *draft.rules, *draft.errors)}
    for line, text in draft.prose:
        near = re.match(r"\s*([-*+] )?\*\*(value: |likes |dislikes |rule [a-z]+\d)", text, re.IGNORECASE)
        if near and line not in read:
            yield line, "looks like a value, preference or rule, but is read as prose; see docs/specs.md"
