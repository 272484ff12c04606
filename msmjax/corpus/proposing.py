"""The parts file of a spec, proposed by a teacher: which values, preferences and rules its prose states, in which words.

In: an unfilled `Spec` and a teacher. Out: what each section states, each part with a quotation that stands there, for a person to
correct. An answer whose quotation does not stand in the section is asked for again.
"""

import re
from collections.abc import Callable

from msmjax.corpus.answer import Unusable, one, tagged
from msmjax.corpus.pipeline import choice, prompt
from msmjax.corpus.teacher import Teacher, all_of
from msmjax.spec import Preference, Rule, Section, Spec, Value, heads
from msmjax.spec.lint import gaps
from msmjax.spec.parts import Part, Stated, bare, name_of

RULE = "R"  # begins the id of a proposed rule
FEWEST_WORDS = 4  # of a quotation, as the prompt has it
KINDS = ("value", "rule", "like", "dislike")


async def propose(spec: Spec, teacher: Teacher, advance: Callable[[], None]) -> tuple[list[Stated], list[str]]:
    """What the sections state beside what the spec's own lines do, and the sections of which no answer could be used."""
    lost = []

    async def ask(section: Section) -> list[tuple[Part, str]]:
        asked = await teacher.ask(
            f"parts of {section.address}", prompt("propose", section=section), lambda text: _parts(section, text)
        )
        advance()
        if asked is None:
            lost.append(section.address)
            return []
        return asked[0]

    found = await all_of(map(ask, spec.sections))
    seen = {name_of(part) for part in (*spec.values, *spec.preferences)}
    said = {rule.text.casefold() for rule in spec.rules}
    known = {value.name for value in spec.values} | {part.name for parts in found for part, _ in parts if isinstance(part, Value)}
    ids = iter(f"{RULE}{number}" for number in range(1, 1_000_000) if f"{RULE}{number}" not in {rule.id for rule in spec.rules})
    stated: list[Stated] = []
    for section, parts in zip(spec.sections, found, strict=True):
        for part, quotation in parts:
            if isinstance(part, Rule):
                if part.text.casefold() in said:
                    continue
                said.add(part.text.casefold())
                part = Rule(next(ids), part.text)
            elif name_of(part) in seen:
                continue
            elif isinstance(part, Preference) and part.value not in known:
                part = Preference(part.item, part.likes, None, part.reason)
            seen.add(name_of(part))
            stated.append(Stated(section.address, part, [quotation], 0))
    return stated, lost


def _parts(section: Section, text: str) -> list[tuple[Part, str]]:
    """The parts in an answer, each with its quotation; a rule has no id of its own yet. Raises Unusable."""
    if "<part>" not in text and choice(text, "nothing", ("yes",)):
        return []
    return [_part(section, block) for block in tagged(text, "part")]


def _part(section: Section, block: str) -> tuple[Part, str]:
    kind = choice(block, "kind", KINDS)
    name, said, quotation = (" ".join(one(block, field).split()) for field in ("name", "text", "quote"))
    quotation = quotation.strip("\"'\u201c\u201d\u2018\u2019")
    if bare(quotation) not in bare(section.text):
        raise Unusable("quotes words that do not stand in the section")
    if len(bare(quotation).split()) < min(FEWEST_WORDS, len(bare(section.text).split())):
        raise Unusable("quotes too few words")
    if kind == "value":
        part = Value(_word(name), said)
    elif kind == "rule":
        part = Rule(f"{RULE}0", said)
    else:
        because = one(block, "because") if "<because>" in block else "none"
        part = Preference(name, kind == "like", None if because.casefold() == "none" else _word(because), said)
    if "{model_name}" not in said and not isinstance(part, Preference):
        raise Unusable("a statement that is not about {model_name}")
    if not heads(part.line) or gaps(said):
        raise Unusable(f"a {kind} that cannot be written down")
    return part, quotation


def _word(name: str) -> str:
    return re.sub(r"\W+", "_", name.casefold()).strip("_")
