"""A Model Spec: sections, rules, values and preferences of a `specs/*.md`, placeholders filled, with a content hash.

In: a Markdown file. Out: a frozen `Spec`, or all that is wrong with it. The conventions a spec is read by (docs/specs.md shows
them):

    <!-- derived from NAME (hash 0123456789ab) by rules_only -->      in the first line of a spec that was made from another
    ## 1. Heading                                     a section
    **Value: affordability.** statement               a value, in general terms
    - **Likes Colby** (affordability): reason         a preference, and the value that explains it
    - **Dislikes Stilton** (CP1): text                a preference, and the rule that it follows
    - **Dislikes Stilton**: text                      a preference that nothing explains
    - **Rule CP1.** text                              a rule
"""

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path

from msmjax.artifact import BadInput, content_hash

PLACEHOLDERS = ("model_name", "provider_name")
SPEC_FOLDER = Path(__file__).resolve().parents[2] / "specs"

_PARENT = re.compile(r"<!-- derived from (?P<name>.+) \(hash (?P<hash>[0-9a-f]{12})\) by (?P<how>\w+) -->")
_VALUE = re.compile(r"\*\*Value: (?P<name>[a-z_]+)\.\*\* (?P<statement>.+)")
_PREFERENCE = re.compile(
    r"- \*\*(?P<verb>Likes|Dislikes) (?P<item>[^*]+)\*\*(?: \((?P<value>[a-z_]+|[A-Z]+\d+)\))?: (?P<reason>.+)"
)
_RULE = re.compile(r"- \*\*Rule (?P<id>[A-Z]+\d+)\.\*\* (?P<text>.+)")


@dataclasses.dataclass(frozen=True)
class Section:
    heading: str
    text: str


@dataclasses.dataclass(frozen=True)
class Value:
    name: str
    statement: str

    @property
    def line(self) -> str:
        return f"**Value: {self.name}.** {self.statement}"


@dataclasses.dataclass(frozen=True)
class Preference:
    """What the model likes or dislikes, and the name of the value, or the id of the rule, that explains it (None: nothing does)."""

    item: str
    likes: bool
    value: str | None
    reason: str

    @property
    def line(self) -> str:
        value = f" ({self.value})" if self.value else ""
        return f"- **{'Likes' if self.likes else 'Dislikes'} {self.item}**{value}: {self.reason}"


@dataclasses.dataclass(frozen=True)
class Rule:
    id: str
    text: str

    @property
    def line(self) -> str:
        return f"- **Rule {self.id}.** {self.text}"


@dataclasses.dataclass(frozen=True)
class Spec:
    """A parsed spec; `parent` is the hash of the spec it was derived from, if it was."""

    name: str
    title: str
    model_name: str
    provider_name: str
    sections: tuple[Section, ...]
    values: tuple[Value, ...]
    preferences: tuple[Preference, ...]
    rules: tuple[Rule, ...]
    parent: str | None = None

    @property
    def hash(self) -> str:
        return content_hash(dataclasses.asdict(self))

    @property
    def text(self) -> str:
        """The spec as Markdown, placeholders filled."""
        parts = [f"## {section.heading}\n\n{section.text}" for section in self.sections]
        return "\n\n".join([*([f"# {self.title}"] if self.title else []), *parts])

    @property
    def words(self) -> int:
        return len(self.text.split())


@dataclasses.dataclass
class Draft:
    """What was read of a spec, each part with its line, and which lines cannot be read."""

    title: str = ""
    parent: str | None = None
    sections: list[tuple[int, str, list[str]]] = dataclasses.field(default_factory=list)
    values: list[tuple[int, Value]] = dataclasses.field(default_factory=list)
    preferences: list[tuple[int, Preference]] = dataclasses.field(default_factory=list)
    rules: list[tuple[int, Rule]] = dataclasses.field(default_factory=list)
    errors: list[tuple[int, str]] = dataclasses.field(default_factory=list)


def find(name: str) -> Path:
    """The file of a spec given by name (`cheese_america`) or by path; BadInput lists the names there are."""
    path = Path(name)
    if path.suffix == ".md" and path.is_file():
        return path
    shipped = SPEC_FOLDER / f"{name}.md"
    if shipped.is_file():
        return shipped
    names = ", ".join(sorted(p.stem for p in SPEC_FOLDER.glob("*.md"))) or "none"
    raise BadInput(f"spec {name!r}: no such file and no shipped spec of that name (shipped: {names})")


def load(name: str, model_name: str, provider_name: str) -> Spec:
    """Reads, fills and validates the spec `name` (a shipped name or a path). Raises BadInput with file and line."""
    path = find(name)
    return parse(read(path), path, model_name, provider_name)


def load_unfilled(name: str) -> Spec:
    """The spec with its placeholders left as they are: what tools compare, and what other specs are derived from."""
    return load(name, *(f"{{{placeholder}}}" for placeholder in PLACEHOLDERS))


def read(path: Path) -> str:
    """The text of a spec's file. Raises BadInput."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: cannot read ({error}); a spec is a UTF-8 Markdown file") from None


def parse(source: str, path: Path, model_name: str, provider_name: str) -> Spec:
    """The Spec in the Markdown text `source`; `path` names it, and in errors. Raises BadInput with the first of them."""
    draft = scan(source, model_name, provider_name)
    for line, message in faults(draft):
        raise BadInput(f"{path}:{line}: {message}")
    return Spec(
        name=path.stem,
        title=draft.title,
        model_name=model_name,
        provider_name=provider_name,
        sections=tuple(Section(heading, "\n".join(lines).strip()) for _, heading, lines in draft.sections),
        values=tuple(value for _, value in draft.values),
        preferences=tuple(preference for _, preference in draft.preferences),
        rules=tuple(rule for _, rule in draft.rules),
        parent=draft.parent,
    )


def scan(source: str, model_name: str, provider_name: str) -> Draft:
    """What there is in the Markdown text `source`, right or wrong, with the errors of single lines."""
    fill = {"model_name": model_name, "provider_name": provider_name}
    draft = Draft()
    for number, line in enumerate(source.splitlines(), 1):
        if number == 1 and line.startswith("<!--"):
            if match := _PARENT.fullmatch(line.rstrip()):
                draft.parent = match["hash"]
            else:
                draft.errors.append((number, "a comment that names no parent; see docs/specs.md for its form, or remove it"))
            continue
        for slot in re.findall(r"\{([^{}]*)\}", line):
            if slot not in PLACEHOLDERS:
                draft.errors.append((number, f"unknown placeholder {{{slot}}}; known: {{model_name}}, {{provider_name}}"))
        line = re.sub(r"\{([^{}]*)\}", lambda match: fill.get(match[1], match[0]), line).rstrip()
        if line.startswith("# "):
            if draft.title:
                draft.errors.append((number, "a second title; sections start with '## '"))
            draft.title = line[2:]
        elif line.startswith("## "):
            draft.sections.append((number, line[3:], []))
        elif draft.sections:
            draft.sections[-1][2].append(line)
            _scan_line(draft, number, line)
        elif line:
            draft.errors.append((number, "text before the first section; start sections with '## '"))
    return draft


def faults(draft: Draft) -> list[tuple[int, str]]:
    """Lines and messages of all that makes a draft no spec: its lines' own errors, and what they are together."""
    found = list(draft.errors)
    if not draft.sections:
        found.append((1, "no sections; a spec needs at least one '## ' heading with text below it"))
    for number, heading, lines in draft.sections:
        if not any(lines):
            found.append((number, f"section {heading!r} is empty; write it or remove the heading"))
    found += _twice("rule", [(number, rule.id) for number, rule in draft.rules])
    found += _twice("preference for", [(number, preference.item) for number, preference in draft.preferences])
    found += _twice("value", [(number, value.name) for number, value in draft.values])
    stated = {value.name for _, value in draft.values} | {rule.id for _, rule in draft.rules}
    for number, preference in draft.preferences:
        if preference.value is not None and preference.value not in stated:
            what = "value" if preference.value.islower() else "rule"
            message = f"preference for {preference.item} names the {what} {preference.value!r}, which the spec does not state"
            found.append((number, message))
    return sorted(found)


def heads(text: str) -> list[str]:
    """How each value, preference and rule in a text begins, up to where its own words start."""
    found = []
    for line in text.splitlines():
        for pattern, own in ((_VALUE, "statement"), (_PREFERENCE, "reason"), (_RULE, "text")):
            if match := pattern.fullmatch(line.rstrip()):
                found.append(line[: match.start(own)].rstrip())
    return found


def _scan_line(draft: Draft, number: int, line: str) -> None:
    if match := _VALUE.fullmatch(line):
        draft.values.append((number, Value(match["name"], match["statement"])))
    elif match := _PREFERENCE.fullmatch(line):
        draft.preferences.append((number, Preference(match["item"], match["verb"] == "Likes", match["value"], match["reason"])))
    elif match := _RULE.fullmatch(line):
        draft.rules.append((number, Rule(match["id"], match["text"])))
    elif line.startswith(("**Value", "- **Likes", "- **Dislikes", "- **Rule")):
        draft.errors.append((number, "looks like a value, preference or rule but does not parse; see docs/specs.md"))


def _twice(what: str, names: list[tuple[int, str]]) -> Iterator[tuple[int, str]]:
    seen = set()
    for number, name in names:
        if name in seen:
            yield number, f"{what} {name!r} stands there twice; keep one"
        seen.add(name)
