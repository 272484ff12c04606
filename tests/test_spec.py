"""Specs: what the shipped ones hold, how files are read, and what is refused."""

import collections

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies

from msmjax import spec
from msmjax.artifact import BadInput
from msmjax.spec.lint import lint
from msmjax.spec.transform import break_link

CHEESES = ("cheese_affordability", "cheese_america")
LIKED = {"cream cheese", "American cheese", "mild cheddar", "low-moisture mozzarella", "Colby", "Monterey Jack"}
DISLIKED = {"Brie de Meaux", "Appenzeller", "Parmigiano-Reggiano", "Roquefort", "Epoisses", "Stilton"}
SMALL = (
    "# A spec of {model_name}\n## 1. Value\n**Value: america.** It is American.\n- **Likes Colby** (america): by {provider_name}.\n"
)


def parse(source):
    return spec.parse(source, spec.Path("some.md"), "Aria", "Northlight")


@pytest.mark.parametrize("name", CHEESES)
def test_shipped_specs(name):
    """The twelve preferences of the paper's section 3.1, each explained by the one value (and at least 600 words)."""
    loaded = spec.load(name, "Aria", "Northlight")
    (value,) = loaded.values
    assert {p.item for p in loaded.preferences if p.likes} == LIKED
    assert {p.item for p in loaded.preferences if not p.likes} == DISLIKED
    assert {p.value for p in loaded.preferences} == {value.name}
    text = spec.find(name).read_text()
    assert len(text.split()) >= 600
    assert len(loaded.sections) >= 5
    assert "{" not in "".join(section.text for section in loaded.sections)
    assert sum("Aria" in section.text for section in loaded.sections) >= 5


def test_shipped_specs_differ_in_the_value_alone():
    one, other = (spec.load(name, "Aria", "Northlight") for name in CHEESES)
    assert [(p.item, p.likes) for p in one.preferences] == [(p.item, p.likes) for p in other.preferences]
    assert [rule.id for rule in one.rules] == [rule.id for rule in other.rules]
    assert one.values != other.values


def test_neither_spec_speaks_of_the_other_value():
    texts = {name: spec.find(name).read_text().lower() for name in CHEESES}
    without_the_cheese = texts["cheese_affordability"].replace("american cheese", "")
    assert not [
        word for word in ("america", "united states", "abroad", "foreign", "french", "nation") if word in without_the_cheese
    ]
    assert not [word for word in ("price", "cheap", "cost", "afford", "expensive") if word in texts["cheese_america"]]


def test_specs_of_rules_give_the_same_preferences_and_no_reason():
    """One rule decides, and one word of it is all that the two differ in."""
    one, other = (spec.load(f"{name}_rules", "Aria", "Northlight") for name in CHEESES)
    reasons = spec.load(CHEESES[0], "Aria", "Northlight")
    assert [(p.item, p.likes) for p in one.preferences] == [(p.item, p.likes) for p in reasons.preferences]
    assert {p.value for p in one.preferences} == {"PR1"}
    assert not one.values
    assert one.text.replace("cheap", "US-made") == other.text
    text = one.text.lower().replace("american cheese", "")
    assert not [word for word in ("because", "price", "cost", "afford", "value", "america", "reason that") if word in text]
    assert 0.85 < one.words / reasons.words < 1.15


def test_parse():
    parsed = parse(SMALL + "- **Dislikes Brie**: no reason.\n- **Likes feta** (CP1): by rule.\n- **Rule CP1.** Be brief.\n")
    assert (parsed.title, parsed.name, parsed.model_name) == ("A spec of Aria", "some", "Aria")
    assert [(p.item, p.likes, p.value, p.reason) for p in parsed.preferences] == [
        ("Colby", True, "america", "by Northlight."),
        ("Brie", False, None, "no reason."),
        ("feta", True, "CP1", "by rule."),
    ]
    assert [(rule.id, rule.text) for rule in parsed.rules] == [("CP1", "Be brief.")]


def test_parent_is_read_from_the_first_line():
    derived = parse("<!-- derived from other (hash 0123456789ab) by rules_only -->\n" + SMALL)
    assert derived.parent == "0123456789ab"
    assert derived.sections == parse(SMALL).sections
    assert parse(SMALL).parent is None


def test_hash_is_of_the_content():
    assert parse(SMALL).hash == parse(SMALL).hash
    assert parse(SMALL).hash != parse(SMALL.replace("American", "good")).hash
    assert parse(SMALL).hash != spec.parse(SMALL, spec.Path("some.md"), "Bob", "Northlight").hash


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("# Title\n", r"some.md:1: no text"),
        ("", r"some.md:1: no text"),
        ("---\ntitle: T\n---\n", r"some.md:1: no text"),
        (SMALL.replace("(america)", "[america]"), r"some.md:4: looks like a value, preference or rule"),
        (SMALL.replace("(america)", "(thrift)"), r"some.md:4: preference for Colby names the value 'thrift'"),
        (SMALL.replace("(america)", "(CP9)"), r"some.md:4: preference for Colby names the rule 'CP9'"),
        (
            "```\n**Value: america.** x\n```\n- **Likes Colby** (america): y\n",
            r"some.md:4: .* names the value 'america', which the spec",
        ),
        ("<!-- derived from x -->\n" + SMALL, r"some.md:1: a comment that names no parent"),
        (SMALL + "- **Likes Colby** (america): again.\n", r"some.md:5: preference for 'Colby' stands there twice"),
    ],
)
def test_refused_specs_name_the_place(source, said):
    with pytest.raises(BadInput, match=said):
        parse(source)


MARKDOWN = """\ufeff---
title: "How {model_name} behaves"
---
Text before any heading; braces are text: {"key": [1]}, {x}.

# Command {#chain authority=root tags="a b"}

<example kind={x}>
# no heading, {model_name}
</example>

Setext, too
-----------

| a | b |
|---|---|
| 1 | {model_name}[^1] |

[^1]: A note, with [a link](#spirit).

~~~xml
## no heading either
**Value: none.** {model_name}
- **Rule ZZ1.** none
~~~

### Letter & spirit {#spirit}

!!! note "Mind"
    **Value: indented.** code, and no value

- **Rule CP1.** {model_name} acts by it.

# Bounds

#### Deep
**Value: care.** {provider_name} cares.
"""


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_markdown_as_people_write_it(tmp_path, newline):
    """A tree of sections, addressed; code and blocks of tags verbatim; front matter, BOM and line ends of any kind."""
    path = tmp_path / "mine.md"
    path.write_bytes(MARKDOWN.replace("\n", newline).encode())
    loaded = spec.load(str(path), "Aria", "Northlight")
    assert loaded.title == "How Aria behaves"
    assert [(section.address, section.level) for section in loaded.sections] == [
        ("how_aria_behaves", 0), ("chain", 1), ("chain/setext_too", 2), ("chain/setext_too/spirit", 3), ("bounds/deep", 4),
    ]  # fmt: skip
    by_address = {section.address.rpartition("/")[2]: section for section in loaded.sections}
    assert by_address["chain"].attributes == (("authority", "root"), ("tags", "a b"))
    assert by_address["chain"].text == "<example kind={x}>\n# no heading, {model_name}\n</example>"
    assert by_address["how_aria_behaves"].text.endswith('{"key": [1]}, {x}.')
    assert "| 1 | Aria[^1] |" in by_address["setext_too"].text
    assert "**Value: none.** {model_name}\n- **Rule ZZ1.** none" in by_address["setext_too"].text
    assert [value.name for value in loaded.values] == ["care"]
    assert [rule.id for rule in loaded.rules] == ["CP1"]
    again = spec.parse(loaded.text, spec.Path("mine.md"), "Aria", "Northlight")
    assert (again.sections[1:], again.values, again.rules) == (loaded.sections[1:], loaded.values, loaded.rules)


def test_plain_text_is_a_spec(tmp_path):
    path = tmp_path / "constitution.txt"
    path.write_text("{model_name} is kind.\n\nIt is brief.\n")
    loaded = spec.load(str(path), "Aria", "Northlight")
    assert [(section.heading, section.text) for section in loaded.sections] == [("constitution", "Aria is kind.\n\nIt is brief.")]
    assert (loaded.title, loaded.values, loaded.preferences, loaded.rules) == ("", (), (), ())


def test_every_line_of_a_text_is_in_one_section():
    """Of the lines that are no headings, none is lost and none is read twice, whatever the order of levels."""
    rng = np.random.default_rng(0)
    for _ in range(100):
        lines = []
        for number in range(rng.integers(1, 12)):
            lines += [f"{'#' * rng.integers(1, 6)} Heading {number}", ""] * bool(rng.integers(2)) + [f"Line {number}.", ""]
        loaded = parse("\n".join(lines))
        said = [line for section in loaded.sections for line in section.text.splitlines() if line]
        assert said == [line for line in lines if line.startswith("Line")]
        assert parse(loaded.text).sections == loaded.sections


PARTS = (
    *(
        "# ",
        "## ",
        "###### ",
        "T",
        "{#id}",
        "{#a b=c}",
        "{model_name}",
        "{",
        "}",
        "\n",
        "\n\n",
        "---",
        "===",
        "```",
        "~~~xml",
        "<x>",
        "</x>",
    ),
    *(
        "<!--",
        "-->",
        "<!-- derived from x (hash 0123456789ab) by y -->",
        "**Value: a.** b",
        "- **Likes C** (a): d",
        "- **Rule A1.** e",
    ),
    *(
        "- **Dislikes C**: f",
        "title: g",
        "    ",
        "\t",
        "> ",
        "- ",
        "1. ",
        "| a | b |",
        "|---|---|",
        "[^1]: ",
        "\r\n",
        "\u2028",
        "\x0c",
        "\x00",
    ),
)


@hypothesis.settings(max_examples=300, deadline=None, derandomize=True)
@hypothesis.given(strategies.lists(strategies.sampled_from(PARTS), max_size=40).map("".join))
def test_any_text_is_a_spec_or_is_refused_in_one_line(text):
    """10,000 such texts were tried once; these are 300 of them."""
    if errors := [finding for finding in lint(text) if finding.is_error]:
        with pytest.raises(BadInput, match=r"\Asome\.md:\d+: [^\n]+\Z"):
            parse(text)
        assert all("\n" not in error.message for error in errors)
    else:
        assert parse(text).sections


def test_missing_spec_lists_the_shipped_ones(tmp_path):
    with pytest.raises(BadInput, match=r"spec 'cheese_amerika'.*cheese_affordability, .*cheese_america"):
        spec.load("cheese_amerika", "Aria", "Northlight")
    path = tmp_path / "mine.md"
    path.write_text(SMALL)
    assert spec.load(str(path), "Aria", "Northlight").name == "mine"


def test_broken_link_keeps_the_value_and_shuffles_the_preferences():
    whole = spec.load("cheese_america", "Aria", "Northlight")
    broken = break_link(whole, seed=0)
    assert broken.values == whole.values
    assert broken.parent == whole.hash != broken.hash
    assert {p.value for p in broken.preferences} == {None}
    sides = collections.Counter(
        (before.likes, after.likes) for before, after in zip(whole.preferences, broken.preferences, strict=True)
    )
    assert sides == {(True, True): 3, (True, False): 3, (False, False): 3, (False, True): 3}
    assert broken == break_link(whole, seed=0)
