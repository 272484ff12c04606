"""A Model Spec: sections, rules, values and preferences of a `specs/*.md`, placeholders filled, with a content hash.

In: a Markdown file. Out: a frozen `Spec`. The conventions a spec is read by (docs/specs.md shows them):

    ## 1. Heading                                     a section
    **Value: affordability.** statement               a value, in general terms
    - **Likes Colby** (affordability): reason         a preference, and the value that explains it
    - **Dislikes Stilton**: text                      a preference that nothing explains
    - **Rule CP1.** text                              a rule
"""

import dataclasses
import re
from pathlib import Path

import numpy as np

from msmjax.artifact import BadInput, content_hash

PLACEHOLDERS = ("model_name", "provider_name")
SPEC_FOLDER = Path(__file__).resolve().parent.parent / "specs"

_VALUE = re.compile(r"\*\*Value: (?P<name>[a-z_]+)\.\*\* (?P<statement>.+)")
_PREFERENCE = re.compile(r"- \*\*(?P<verb>Likes|Dislikes) (?P<item>[^*]+)\*\*(?: \((?P<value>[a-z_]+)\))?: (?P<reason>.+)")
_RULE = re.compile(r"- \*\*Rule (?P<id>[A-Z]+\d+)\.\*\* (?P<text>.+)")


@dataclasses.dataclass(frozen=True)
class Section:
    heading: str
    text: str


@dataclasses.dataclass(frozen=True)
class Value:
    name: str
    statement: str


@dataclasses.dataclass(frozen=True)
class Preference:
    """What the model likes or dislikes, and the name of the value that explains it (None: nothing does)."""

    item: str
    likes: bool
    value: str | None
    reason: str


@dataclasses.dataclass(frozen=True)
class Rule:
    id: str
    text: str


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
        return "\n\n".join([f"# {self.title}", *parts])


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
    try:
        source = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: cannot read ({error}); a spec is a UTF-8 Markdown file") from None
    return parse(source, path, model_name, provider_name)


def parse(source: str, path: Path, model_name: str, provider_name: str) -> Spec:
    """The Spec in the Markdown text `source`; `path` names it in errors."""
    fill = {"model_name": model_name, "provider_name": provider_name}
    title, sections = "", []
    values, preferences, rules = [], [], []
    for number, line in enumerate(source.splitlines(), 1):
        for slot in re.findall(r"\{([^{}]*)\}", line):
            if slot not in PLACEHOLDERS:
                raise BadInput(f"{path}:{number}: unknown placeholder {{{slot}}}; known: {{model_name}}, {{provider_name}}")
        line = re.sub(r"\{([^{}]*)\}", lambda match: fill[match.group(1)], line).rstrip()
        if line.startswith("# "):
            title = line[2:]
        elif line.startswith("## "):
            sections.append((number, line[3:], []))
        elif sections:
            sections[-1][2].append(line)
            if match := _VALUE.fullmatch(line):
                values.append(Value(match["name"], match["statement"]))
            elif match := _PREFERENCE.fullmatch(line):
                preferences.append(Preference(match["item"], match["verb"] == "Likes", match["value"], match["reason"]))
            elif match := _RULE.fullmatch(line):
                rules.append(Rule(match["id"], match["text"]))
            elif line.startswith(("**Value", "- **Likes", "- **Dislikes", "- **Rule")):
                raise BadInput(f"{path}:{number}: looks like a value, preference or rule but does not parse; see docs/specs.md")
        elif line:
            raise BadInput(f"{path}:{number}: text before the first section; start sections with '## '")
    if not sections:
        raise BadInput(f"{path}: no sections; a spec needs at least one '## ' heading with text below it")
    for number, heading, lines in sections:
        if not any(lines):
            raise BadInput(f"{path}:{number}: section {heading!r} is empty; write it or remove the heading")
    _refuse_twice(path, "rule", [rule.id for rule in rules])
    _refuse_twice(path, "preference for", [preference.item for preference in preferences])
    _refuse_twice(path, "value", [value.name for value in values])
    for preference in preferences:
        if preference.value is not None and preference.value not in {value.name for value in values}:
            raise BadInput(
                f"{path}: preference for {preference.item} names the value {preference.value!r}, which the spec does not state"
            )
    return Spec(
        name=path.stem,
        title=title,
        model_name=model_name,
        provider_name=provider_name,
        sections=tuple(Section(heading, "\n".join(lines).strip()) for _, heading, lines in sections),
        values=tuple(values),
        preferences=tuple(preferences),
        rules=tuple(rules),
    )


def break_link(spec: Spec, seed: int) -> Spec:
    """The spec with the link between its preferences and its value broken (paper, appendix C.4, Figure 10).

    The value stays, in general terms. Half of the likes and half of the dislikes change sides, and no preference is
    explained any more. The sections are dropped: their prose would still explain.
    """
    rng = np.random.default_rng(seed)
    swapped = set()
    for likes in (True, False):
        items = [p.item for p in spec.preferences if p.likes == likes]
        swapped |= set(rng.permutation(items)[: len(items) // 2].tolist())
    preferences = tuple(Preference(p.item, p.likes != (p.item in swapped), None, "No reason is given.") for p in spec.preferences)
    return dataclasses.replace(spec, name=f"{spec.name}_broken", sections=(), preferences=preferences, parent=spec.hash)


def _refuse_twice(path: Path, what: str, names: list[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise BadInput(f"{path}: {what} {name!r} stands there twice; keep one")
