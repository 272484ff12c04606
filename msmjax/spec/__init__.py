"""A Model Spec: sections, rules, values and preferences of a `specs/*.md`, placeholders filled, with a content hash.

In: a Markdown file as people write them, or plain text. Out: a frozen `Spec`, or all that is wrong with it. Headings make sections;
the other conventions are for what wants them (docs/specs.md says which), and a spec need not have any:

    <!-- derived from NAME (hash 0123456789ab) by rules_only -->      in the first line of a spec that was made from another
    ## 1. Heading {#id key=value}                     a section, of any level, its id and attributes optional
    **Value: affordability.** statement               a value, in general terms
    - **Likes Colby** (affordability): reason         a preference, and the value that explains it
    - **Dislikes Stilton** (CP1): text                a preference, and the rule that it follows
    - **Dislikes Stilton**: text                      a preference that nothing explains
    - **Rule CP1.** text                              a rule

They may also stand in a file beside it, `NAME.parts.md`, which spec/parts.py reads.
"""

import dataclasses
import itertools
import re
from collections.abc import Iterator
from pathlib import Path

from msmjax.artifact import BadInput, content_hash

PLACEHOLDERS = ("model_name", "provider_name")
SUFFIXES = (".md", ".markdown", ".txt")
SPEC_FOLDER = Path(__file__).resolve().parents[2] / "specs"

_PARENT = re.compile(r"<!-- derived from (?P<name>.+) \(hash (?P<hash>[0-9a-f]{12})\) by (?P<how>\w+) -->")
_VALUE = re.compile(r"\*\*Value: (?P<name>[a-z_]+)\.\*\* (?P<statement>.+)")
_PREFERENCE = re.compile(
    r"- \*\*(?P<verb>Likes|Dislikes) (?P<item>[^*]+)\*\*(?: \((?P<value>[a-z_]+|[A-Z]+\d+)\))?: (?P<reason>.+)"
)
_RULE = re.compile(r"- \*\*Rule (?P<id>[A-Z]+\d+)\.\*\* (?P<text>.+)")
_CONVENTIONS = re.compile(r"\*\*Value: |- \*\*(Likes|Dislikes) |- \*\*Rule [A-Z]+\d")  # how they begin
_ATTRIBUTE = r"(?:[#.][\w:.-]+|[\w:-]+=(?:\"[^\"]*\"|[^\s{}\"]+))"
_ATTRIBUTES = re.compile(rf"\s*\{{\s*({_ATTRIBUTE}(?:\s+{_ATTRIBUTE})*)\s*\}}$")
_VERBATIM = ("fence", "code_block", "html_block")


@dataclasses.dataclass(frozen=True)
class Heading:
    """A heading and what stands behind it in braces: `## Text {#id key=value}`, level 2."""

    text: str
    level: int
    id: str = ""
    attributes: tuple[tuple[str, str], ...] = ()

    @property
    def slug(self) -> str:
        """Its id, or its text as an id."""
        return self.id or re.sub(r"\W+", "_", self.text.casefold()).strip("_")

    @property
    def line(self) -> str:
        braces = [f"#{self.id}"] * bool(self.id) + [f'{key}="{value}"' for key, value in self.attributes]
        return f"{'#' * self.level} {self.text}" + (f" {{{' '.join(braces)}}}" if braces else "")


@dataclasses.dataclass(frozen=True)
class Section:
    """A heading with the text up to the next one of any level; `parents` are the headings above it, the title apart.

    What stands below no heading but the title has level 0 and is named as the whole, or as its file.
    """

    heading: str
    text: str
    level: int = 2
    id: str = ""
    attributes: tuple[tuple[str, str], ...] = ()
    parents: tuple[Heading, ...] = ()

    @property
    def whole_heading(self) -> Heading:
        return Heading(self.heading, self.level, self.id, self.attributes)

    @property
    def address(self) -> str:
        """Where it stands in the tree: `chain_of_command/letter_and_spirit`."""
        return "/".join(heading.slug for heading in (*self.parents, self.whole_heading))


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
    """A parsed spec; `parent` is the hash of the spec it was derived from, if it was. Its sections are those that have a text."""

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
        """Of all there is; what a section has of every section's defaults does not count."""
        defaults = {field.name: field.default for field in dataclasses.fields(Section)}
        content = dataclasses.asdict(self)
        content["sections"] = [{k: v for k, v in section.items() if v != defaults[k]} for section in content["sections"]]
        return content_hash(content)

    @property
    def text(self) -> str:
        """The spec as Markdown, placeholders filled."""
        tops = [heading for s in self.sections for heading in (*s.parents, s.whole_heading) if heading.level == 1]
        as_title = f"---\ntitle: {self.title}\n---" if tops else f"# {self.title}"
        parts = [as_title] if self.title else []
        above: tuple[Heading, ...] = ()
        for section in self.sections:
            chain = (*section.parents, *([section.whole_heading] if section.level else []))
            shared = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(above, chain, strict=False))
            parts += [heading.line for heading in chain[len(list(shared)) :]]
            parts.append(section.text)
            above = chain
        return "\n\n".join(parts)

    @property
    def words(self) -> int:
        return len(self.text.split())


@dataclasses.dataclass
class Draft:
    """What was read of a spec, each part with its line, and which lines cannot be read."""

    title: str = ""
    parent: str | None = None
    headings: list[tuple[int, Heading]] = dataclasses.field(default_factory=list)  # all of them
    sections: list[tuple[int, Section]] = dataclasses.field(default_factory=list)  # those with a text
    prose: list[tuple[int, str]] = dataclasses.field(default_factory=list)  # what is neither heading nor verbatim
    values: list[tuple[int, Value]] = dataclasses.field(default_factory=list)
    preferences: list[tuple[int, Preference]] = dataclasses.field(default_factory=list)
    rules: list[tuple[int, Rule]] = dataclasses.field(default_factory=list)
    errors: list[tuple[int, str]] = dataclasses.field(default_factory=list)


def find(name: str) -> Path:
    """The file of a spec given by name (`cheese_america`) or by path; BadInput lists the names there are."""
    path = Path(name)
    if path.suffix in SUFFIXES and path.is_file():
        return path
    shipped = SPEC_FOLDER / f"{name}.md"
    if shipped.is_file():
        return shipped
    names = ", ".join(sorted(p.stem for p in SPEC_FOLDER.glob("*.md") if not p.stem.endswith(".parts"))) or "none"
    raise BadInput(f"spec {name!r}: no such file and no shipped spec of that name (shipped: {names})")


def load(name: str, model_name: str, provider_name: str) -> Spec:
    """Reads, fills and validates the spec `name` (a shipped name or a path), with its parts file if it has one (parts.py). Raises
    BadInput with file and line."""
    from msmjax.spec import parts  # which sees this

    path = find(name)
    loaded, beside = parse(read(path), path, model_name, provider_name), parts.file_of(path)
    return parts.add(loaded, read(beside), beside) if beside.is_file() else loaded


def load_unfilled(name: str) -> Spec:
    """The spec with its placeholders left as they are: what tools compare, and what other specs are derived from."""
    return load(name, *(f"{{{placeholder}}}" for placeholder in PLACEHOLDERS))


def read(path: Path) -> str:
    """The text of a spec's file. Raises BadInput."""
    try:
        return path.read_text(encoding="utf-8-sig")
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
        sections=tuple(dataclasses.replace(s, heading=s.heading or draft.title or path.stem) for _, s in draft.sections),
        values=tuple(value for _, value in draft.values),
        preferences=tuple(preference for _, preference in draft.preferences),
        rules=tuple(rule for _, rule in draft.rules),
        parent=draft.parent,
    )


def fill(text: str, model_name: str, provider_name: str) -> str:
    """A text with its placeholders filled."""
    names = {"model_name": model_name, "provider_name": provider_name}
    return re.sub(rf"\{{({'|'.join(PLACEHOLDERS)})\}}", lambda match: names[match[1]], text)


def scan(source: str, model_name: str, provider_name: str) -> Draft:
    """What there is in the Markdown text `source`, right or wrong, with the errors of single lines.

    Code, in fences or indented, and blocks of HTML or of tags like it are verbatim: no placeholder is filled in them, and nothing
    in them is a heading, a value, a preference or a rule. Other braces than placeholders are text.
    """
    from markdown_it import MarkdownIt

    def filled(text: str) -> str:
        return fill(text, model_name, provider_name)

    draft = Draft()
    lines = source.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    if match := _PARENT.fullmatch(lines[0].rstrip()):
        draft.parent, lines[0] = match["hash"], ""
    elif lines[0].startswith("<!-- derived from"):
        draft.errors.append((1, "a comment that names no parent; see docs/specs.md for its form, or remove it"))
    draft.title = filled(_take_front_matter(lines, 1 if draft.parent else 0))

    tokens = MarkdownIt("commonmark").enable("table").parse("\n".join(lines))
    verbatim = {at for token in tokens if token.type in _VERBATIM for at in range(*token.map)}
    ends = {}  # first line of a heading -> the line after it
    for token, inline in itertools.pairwise(tokens):
        if token.type == "heading_open" and token.level == 0:
            heading = _heading(filled(inline.content.replace("\n", " ")), int(token.tag[1:]))
            draft.headings.append((token.map[0] + 1, heading))
            ends[token.map[0]] = token.map[1]
    tops = [heading for _, heading in draft.headings if heading.level == 1]
    # The title is the only heading of its level, with nothing before it and nothing in braces.
    if (
        len(tops) == 1
        and draft.headings[0][1] == Heading(tops[0].text, 1)
        and not "".join(lines[: draft.headings[0][0] - 1]).strip()
    ):
        draft.title = tops[0].text

    for at, line in enumerate(lines):
        if at not in verbatim:
            lines[at] = filled(line)
            if not any(start <= at < end for start, end in ends.items()):
                draft.prose.append((at + 1, lines[at].rstrip()))
                _scan_line(draft, at + 1, lines[at].rstrip())
    above: tuple[Heading, ...] = ()
    starts = [0, *(line - 1 for line, _ in draft.headings), len(lines)]
    for (start, end), (_, heading) in zip(itertools.pairwise(starts), [(0, Heading("", 0)), *draft.headings], strict=True):
        if heading == Heading(draft.title, 1):
            heading = Heading("", 0)
        above = tuple(one for one in above if one.level < heading.level)
        if text := "\n".join(line.rstrip() for line in lines[ends.get(start, start) : end]).strip("\n"):
            draft.sections.append((start + 1, Section(heading.text, text, heading.level, heading.id, heading.attributes, above)))
        above += (heading,) if heading.level else ()
    return draft


def _take_front_matter(lines: list[str], start: int) -> str:
    """Empties the lines of YAML front matter from `start` on and returns its `title`; "" where there is none."""
    title, marks = "", [at for at, line in enumerate(lines) if line.rstrip() == "---"]
    if marks[:1] != [start] or len(marks) == 1:
        return title
    for at in range(start, marks[1] + 1):
        if match := re.match(r"title:\s*(.+)", lines[at]):
            title = match[1].strip().strip("\"'")
        lines[at] = ""
    return title


def _heading(text: str, level: int) -> Heading:
    match = _ATTRIBUTES.search(text)
    if not match:
        return Heading(text.strip(), level)
    parts = re.findall(_ATTRIBUTE, match[1])
    named = tuple((key, value.strip('"')) for key, _, value in (part.partition("=") for part in parts if part[0] not in "#."))
    classes = [part[1:] for part in parts if part.startswith(".")]
    named += (("class", " ".join(classes)),) if classes else ()
    return Heading(text[: match.start()].strip(), level, next((part[1:] for part in parts if part[0] == "#"), ""), named)


def faults(draft: Draft) -> list[tuple[int, str]]:
    """Lines and messages of all that makes a draft no spec: its lines' own errors, and what they are together."""
    found = list(draft.errors)
    if not draft.sections:
        found.append((1, "no text; a spec needs some"))
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
    elif _CONVENTIONS.match(line):
        draft.errors.append((number, "looks like a value, preference or rule but does not parse; see docs/specs.md"))


def _twice(what: str, names: list[tuple[int, str]]) -> Iterator[tuple[int, str]]:
    seen = set()
    for number, name in names:
        if name in seen:
            yield number, f"{what} {name!r} stands there twice; keep one"
        seen.add(name)
