"""What is different between two specs, part by part: sections, values, preferences, rules.

In: two `Spec`s, their placeholders unfilled. Out: lines for a person, "-" for what the first has alone, "+" for the second, "~" for
what both have and say differently.
"""

import difflib
from collections.abc import Iterator

from msmjax.spec import Preference, Spec
from msmjax.spec.transform import unnumbered


def diff(one: Spec, other: Spec) -> list[str]:
    """The differences, sections first; none for specs that say the same."""
    lines = [] if one.title == other.title else [f"~ title: {one.title!r} -> {other.title!r}"]
    lines += _parts("section", *({unnumbered(s.heading): (s.heading, s.text) for s in spec.sections} for spec in (one, other)))
    lines += _parts("value", *({value.name: (value.statement,) for value in spec.values} for spec in (one, other)))
    lines += _preferences(*({p.item: p for p in spec.preferences} for spec in (one, other)))
    lines += _parts("rule", *({rule.id: (rule.text,) for rule in spec.rules} for spec in (one, other)))
    return lines


def diff_text(one: Spec, other: Spec) -> list[str]:
    """A unified diff of the texts."""
    texts = (one.text.splitlines(), other.text.splitlines())
    return list(difflib.unified_diff(*texts, f"{one.name} ({one.hash})", f"{other.name} ({other.hash})", lineterm="", n=1))


def _parts(what: str, one: dict[str, tuple[str, ...]], other: dict[str, tuple[str, ...]]) -> Iterator[str]:
    """Of things that have a name and texts, the last of which is their own."""
    for name in dict.fromkeys([*one, *other]):
        if name not in other:
            yield f"- {what} {name} ({_words(one[name])} words)"
        elif name not in one:
            yield f"+ {what} {name} ({_words(other[name])} words)"
        elif one[name][-1] != other[name][-1]:
            yield f"~ {what} {name} ({_words(one[name])} -> {_words(other[name])} words)"
        elif one[name] != other[name]:
            yield f"~ {what} {name}: its number alone"


def _preferences(one: dict[str, Preference], other: dict[str, Preference]) -> Iterator[str]:
    for item in dict.fromkeys([*one, *other]):
        if item not in other:
            yield f"- {_verb(one[item])} {item}"
        elif item not in one:
            yield f"+ {_verb(other[item])} {item}"
        else:
            before, after = one[item], other[item]
            changed = [f"{_verb(before)} -> {_verb(after)}"] if before.likes != after.likes else []
            changed += [f"value {before.value} -> {after.value}"] if before.value != after.value else []
            changed += ["other reason"] if before.reason != after.reason else []
            if changed:
                yield f"~ preference for {item}: {', '.join(changed)}"


def _verb(preference: Preference) -> str:
    return "likes" if preference.likes else "dislikes"


def _words(texts: tuple[str, ...]) -> int:
    return len(texts[-1].split())
