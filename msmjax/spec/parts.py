"""The parts file of a spec: the values, preferences and rules that its prose states, each with the words that say it.

In: `own.parts.md` beside `own.md`. Out: the spec as if these lines stood at the end of their sections. A teacher proposes one
(corpus/proposing.py), a person corrects it, and each quotation must stand in its section:

    ## chain_of_command/letter_and_spirit

    - **Rule R1.** {model_name} asks where an instruction is not clear.
      > the assistant should ask a clarifying question
"""

import dataclasses
import difflib
import re
from collections.abc import Iterator
from pathlib import Path

from msmjax.artifact import BadInput
from msmjax.spec import Preference, Rule, Section, Spec, Value, fill, parse, scan

Part = Value | Preference | Rule
SUFFIX = ".parts.md"


@dataclasses.dataclass
class Stated:
    """A part, the address of the section that states it, the words that do, and the line of the file that it stands on."""

    address: str
    part: Part
    quotations: list[str]
    line: int


def file_of(path: Path) -> Path:
    """Where the parts file of a spec's file is, if it has one."""
    return path.with_name(path.stem + SUFFIX)


def read(source: str, model_name: str, provider_name: str) -> tuple[list[Stated], list[tuple[int, str]]]:
    """What a parts file states, and its lines that are none of its forms, with what is wrong with them."""
    stated: list[Stated] = []
    wrong: list[tuple[int, str]] = []
    address, open_quotation = "", False
    quoting: bool | None = None  # whether a part is there to be quoted for; False: it is none of its forms
    for number, line in enumerate(source.split("\n"), 1):
        line = line.strip()
        draft = scan("" if line.startswith(">") else line, model_name, provider_name)  # what is quoted is nothing else
        parts = [part for _, part in (*draft.values, *draft.preferences, *draft.rules)]
        if match := re.fullmatch(r"#+ +(\S+)", line):
            address, quoting = match[1], None
        elif parts:
            stated.append(Stated(address, parts[0], [], number))
            quoting = True
        elif line.startswith(">"):
            words = fill(line.lstrip("> "), model_name, provider_name)
            if quoting and open_quotation:
                stated[-1].quotations[-1] += f" {words}"
            elif quoting:
                stated[-1].quotations.append(words)
            elif quoting is None:
                wrong.append((number, "quotes for nothing; a value, preference or rule stands above its quotation"))
        elif line:
            said = draft.errors[0][1] if draft.errors else "no heading, value, preference, rule or quotation; see docs/specs.md"
            wrong.append((number, said))
            quoting = False
        open_quotation = line.startswith(">")
    return stated, wrong


def faults(stated: list[Stated], spec: Spec) -> Iterator[tuple[int, str]]:
    """Lines and messages of all that does not fit the spec."""
    texts: dict[str, str] = {}
    for section in spec.sections:
        # Code is not filled, and may be quoted all the same.
        text = fill(section.text, spec.model_name, spec.provider_name)
        texts[section.address] = f"{texts.get(section.address, '')} {bare(text)}"
    seen = {name_of(part) for part in (*spec.values, *spec.preferences, *spec.rules)}
    explain = {name for kind, name in (seen | {name_of(one.part) for one in stated}) if kind != "preference"}
    for one in stated:
        kind, name = name_of(one.part)
        if one.address not in texts:
            near = difflib.get_close_matches(one.address, texts, 1)
            hint = f"; is it {near[0]}?" if near else "; python -m msmjax.spec outline shows the sections"
            yield one.line, f"{kind} {name!r}: the spec has no section {one.address!r} with a text{hint}"
        elif not any(map(bare, one.quotations)):
            yield one.line, f"{kind} {name!r}: no quotation; the words of the section that say it follow in lines that begin with >"
        for quotation in one.quotations if one.address in texts else []:
            if bare(quotation) not in texts[one.address]:
                yield one.line, f"{kind} {name!r}: these words do not stand in section {one.address!r}: {quotation!r}"
        if (kind, name) in seen:
            yield one.line, f"{kind} {name!r} is stated before; keep one"
        seen.add((kind, name))
        if isinstance(one.part, Preference) and one.part.value is not None and one.part.value not in explain:
            yield (
                one.line,
                f"preference {name!r} names {one.part.value!r}, which is no value and no rule of the spec or of this file",
            )


def add(spec: Spec, source: str, path: Path) -> Spec:
    """The spec with the parts of its parts file, whose text is `source`. Raises BadInput with file and line."""
    stated, wrong = read(source, spec.model_name, spec.provider_name)
    for line, message in sorted([*wrong, *faults(stated, spec)]):
        raise BadInput(f"{path}:{line}: {message}")
    lines: dict[str, list[str]] = {}
    for one in stated:
        lines.setdefault(one.address, []).append(one.part.line)
    sections = [_with_lines(section, lines.pop(section.address, [])) for section in spec.sections]
    made = parse(
        dataclasses.replace(spec, sections=tuple(sections)).text, Path(f"{spec.name}.md"), spec.model_name, spec.provider_name
    )
    there = {*made.values, *made.preferences, *made.rules}
    if lost := next((one for one in stated if one.part not in there), None):
        kind, name = name_of(lost.part)
        raise BadInput(
            f"{path}:{lost.line}: {kind} {name!r} cannot stand at the end of section {lost.address!r}, which ends within code or "
            "HTML that nothing closes; close it there"
        )
    return dataclasses.replace(made, parent=spec.parent)


def source_of(stated: list[Stated]) -> str:
    """The text of a parts file."""
    out, address = [], None
    for one in stated:
        out += [f"## {one.address}", ""] if one.address != address else []
        address = one.address
        out += [one.part.line, *(f"  > {words}" for words in one.quotations), ""]
    return "\n".join(out)


def name_of(part: Part) -> tuple[str, str]:
    """What a part is, and what it is called."""
    if isinstance(part, Value):
        return "value", part.name
    return ("preference", part.item) if isinstance(part, Preference) else ("rule", part.id)


def bare(text: str) -> str:
    """A text without what a quotation may leave away: emphasis, links, marks of lists, line breaks, the form of quotation marks."""
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text)
    text = re.sub(r"[*_`]", "", text.translate({0x2018: "'", 0x2019: "'", 0x201C: '"', 0x201D: '"'}))
    return " ".join(word for word in text.split() if not re.fullmatch(r">|[-+]|\d+\.", word))


def _with_lines(section: Section, lines: list[str]) -> Section:
    return dataclasses.replace(section, text="\n\n".join([section.text, *lines])) if lines else section
