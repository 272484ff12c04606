"""All that is wrong with a spec's file, at once.

In: the text of a file. Out: findings with their lines. Errors are what `parse` refuses, and what would end up in a corpus as it
stands there: gaps nobody filled, a rule that is not there. Warnings are what may be meant.
"""

import dataclasses
import re
from collections.abc import Collection, Iterator

from msmjax.spec import Draft, faults, scan
from msmjax.spec.transform import unnumbered


@dataclasses.dataclass(frozen=True, order=True)
class Finding:
    line: int
    is_error: bool
    message: str


def lint(source: str, names: Collection[str] = ()) -> list[Finding]:
    """Findings in the order of lines. `names` are of assistants that the text must call {model_name}."""
    draft = scan(source, "{model_name}", "{provider_name}")
    rules = {rule.id for _, rule in draft.rules}
    errors = [*faults(draft), *_same_headings(draft)]
    if not draft.title:
        errors.append((1, "no title; begin the file with '# '"))
    for number, line in enumerate(source.splitlines(), 1):
        errors += [(number, message) for message in (*gaps(line), *unknown_rules(line, rules))]
        if re.match(r"##?[^#\s]|##?\s*$", line):
            errors.append((number, "looks like a heading; one is '## ', and then its text"))
        for name in names:
            if re.search(rf"\b{re.escape(name)}\b", line):
                errors.append((number, f"the assistant is called {name}; write {{model_name}}"))
    findings = [Finding(line, True, message) for line, message in errors]
    findings += [Finding(line, False, message) for line, message in _doubtful(draft)]
    return sorted(findings)


def gaps(text: str) -> list[str]:
    """What in a text is still to be filled in."""
    messages = [f"{word} is left to do" for word in re.findall(r"\b(?:TODO|FIXME|TBD|XXX)\b", text)]
    # A Markdown link's text is in brackets too; (address) or [label] follows it.
    messages += [f"{gap} is a gap to be filled in" for gap in re.findall(r"\[[A-Za-z][^\]]*\](?![(\[:])", text)]
    if re.search(r"[{}]", re.sub(r"\{[^{}]*\}", "", text)):
        messages.append("a brace without its partner; placeholders are {model_name} and {provider_name}")
    return messages


def unknown_rules(text: str, rules: Collection[str]) -> list[str]:
    """What a text calls a rule and is none: an id after the word rule or see, or one that begins as the ids of `rules` do."""
    called = re.findall(r"\b(?:[Rr]ules?|[Ss]ee) ([A-Z]+\d+)\b", text)
    prefixes = {rule.rstrip("0123456789") for rule in rules}
    called += [word for word in re.findall(r"\b[A-Z]+\d+\b", text) if word.rstrip("0123456789") in prefixes]
    return [f"refers to rule {name}, which the spec does not have" for name in dict.fromkeys(called) if name not in rules]


def _same_headings(draft: Draft) -> Iterator[tuple[int, str]]:
    """Records name their section by its heading, so a heading must be one section's alone."""
    seen = set()
    for line, heading, _ in draft.sections:
        if heading in seen:
            yield line, f"heading {heading!r} stands there twice; records could not tell the sections apart"
        seen.add(heading)


def _doubtful(draft: Draft) -> Iterator[tuple[int, str]]:
    lines = [(number + i, line) for number, _, text in draft.sections for i, line in enumerate(text, 1)]
    before, seen = 0, {}
    for line, heading, _ in draft.sections:
        bare = unnumbered(heading).casefold()
        if seen.setdefault(bare, heading) != heading:
            yield line, f"heading {heading!r} differs from {seen[bare]!r} by its number alone"
        if match := re.match(r"(\d+)\. ", heading):
            if int(match[1]) != before + 1:
                yield line, f"heading is number {match[1]}, and number {before + 1} was expected"
            before = int(match[1])
    for line, value in draft.values:
        word = re.compile(rf"\b{re.escape(value.name.replace('_', ' '))}\b", re.IGNORECASE)
        explains = any(preference.value == value.name for _, preference in draft.preferences)
        if not explains and not any(word.search(text) for number, text in lines if number != line):
            yield line, f"value {value.name!r} explains no preference and is named nowhere else"
    for line, preference in draft.preferences:
        if preference.value is None:
            yield line, f"preference for {preference.item}: no value explains it"
    read = {line for line, _ in (*draft.values, *draft.preferences, *draft.rules, *draft.errors)}
    for line, text in lines:
        near = re.match(r"\s*([-*+] )?\*\*(value: |likes |dislikes |rule [a-z]+\d)", text, re.IGNORECASE)
        if near and line not in read:
            yield line, "looks like a value, preference or rule, but is read as prose; see docs/specs.md"
