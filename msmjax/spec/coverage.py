"""What of a spec a corpus is about: the records that rest on each section, and the texts that name each of its parts.

In: an unfilled `Spec` and the records of a corpus. Out: counts. A part that is never named is one the model cannot learn of.
"""

import collections
import dataclasses
import re
from collections.abc import Callable

from msmjax.spec import Spec

NO_SECTION = "(no section named)"
OTHER_SECTION = "(a section the spec does not have)"


@dataclasses.dataclass(frozen=True)
class Coverage:
    """Per section: records and their size. Per part, (kind, name): texts that name it; of a statement, texts written to say it."""

    sections: dict[str, tuple[int, int]]
    parts: dict[tuple[str, str], int]


def cover(spec: Spec, records: list[dict], size: Callable[[str], int]) -> Coverage:
    """Counts over the records; `size` is the length of a text in tokens, or in words."""
    headings = {section.heading: _filled(section.heading) for section in spec.sections}
    counts = {heading: [0, 0] for heading in headings}
    patterns = _patterns(spec)
    parts = dict.fromkeys(patterns, 0)
    statements: collections.Counter[str] = collections.Counter()
    for record in records:
        text = _text(record)
        row = counts.setdefault(_section(record, headings), [0, 0])
        row[0] += 1
        row[1] += size(text)
        for part, pattern in patterns.items():
            parts[part] += pattern.search(text) is not None
        statements.update(set(record.get("assertions", ())))
    parts |= {("statement", name): count for name, count in sorted(statements.items())}
    return Coverage({heading: tuple(row) for heading, row in counts.items()}, parts)


def _section(record: dict, headings: dict[str, re.Pattern]) -> str:
    """The heading of the section a record rests on. In records its placeholders are filled."""
    if not record.get("section"):
        return NO_SECTION
    return next((heading for heading, pattern in headings.items() if pattern.fullmatch(str(record["section"]))), OTHER_SECTION)


def _patterns(spec: Spec) -> dict[tuple[str, str], re.Pattern]:
    names = [("value", value.name, re.IGNORECASE) for value in spec.values]
    names += [("preference", preference.item, re.IGNORECASE) for preference in spec.preferences]
    names += [("rule", rule.id, 0) for rule in spec.rules]
    return {
        (kind, name): re.compile(rf"(?<!\w){_filled(name.replace('_', ' ')).pattern}(?!\w)", flags) for kind, name, flags in names
    }


def _filled(text: str) -> re.Pattern:
    """What a text with placeholders may be, once they are filled."""
    return re.compile(re.sub(r"\\\{(model|provider)_name\\\}", ".+", re.escape(text)))


def _text(record: dict) -> str:
    if "messages" in record:
        return "\n".join(str(message.get("content") or "") for message in record["messages"])
    return str(record.get("text", ""))
