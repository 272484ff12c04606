"""Specs a teacher writes: whatever it leaves out or gets wrong is asked for again, and what comes of it holds what it must."""

import asyncio
import collections
import re

import pytest

from msmjax import spec
from msmjax.artifact import BadInput
from msmjax.corpus import rewriting
from msmjax.corpus.answer import Answer
from msmjax.corpus.teacher import Teacher
from msmjax.corpus.teacher_config import TeacherConfig
from msmjax.spec import __main__ as command
from msmjax.spec import heads
from msmjax.spec.lint import lint
from msmjax.spec.transform import source

CONFIG = TeacherConfig(
    model="openai/gpt-4.1-2025-04-14", pinned_by="", base_url="", transcript="", temperature=1.0, top_p=1.0, max_tokens=1000,
    timeout=10, concurrency=4, batch=False, input_price=0.0, output_price=0.0, budget=0.0, tries=3, error_share=1.0,
)  # fmt: skip
RULES = """# Model Spec for {model_name}: rules

## 1. What this is

This is the Model Spec of {model_name}, made by {provider_name}.

## 2. Oversight

- **Rule OV1.** {model_name} stops when it is told to.
- **Rule OV2.** {model_name} keeps no copy of itself.

## 3. Honesty

- **Rule HO1.** {model_name} tells no lies.
"""
LIKES = """# Model Spec for {model_name}: thrift

## 1. The value

**Value: thrift.** {model_name} values thrift.

## 2. What {model_name} likes

- **Likes Colby** (thrift): it costs little.
- **Dislikes Brie** (thrift): it costs much.

## 3. Rules

{model_name} keeps these.

- **Rule CP1.** {model_name} is brief.
"""


def unfilled(text):
    return spec.parse(text, spec.Path("some.md"), "{model_name}", "{provider_name}")


def answer(prompt):
    """What a good teacher writes: it means little, and has the shape, the length and the subject it was asked for."""
    if "<statement>" in prompt:
        return (
            "<value>\n<name>oversight</name>\n<statement>{model_name} wants\nto be seen.</statement>\n</value>\n"
            "<value><name>self_control</name><statement>{model_name} takes little.</statement></value>"
        )
    if match := re.search(r"Write (\d+) words", prompt):
        return f"<below>\n{{model_name}} {'says ' * (int(match[1]) - 2)}so.\n</below>"
    subject = next((said for form, said in SUBJECTS.items() if form in prompt), "{model_name} turns")
    beginnings = re.search(r"<beginnings>\n(.*)\n</beginnings>", prompt, re.DOTALL)
    lines = beginnings[1].splitlines() if beginnings else []
    body = "\n".join([f"{subject} it.", "", *(f"{line} {subject} {place}." for place, line in enumerate(lines))])
    return f"<heading>7. About {len(prompt)}</heading>\n<section>\n{body}\n</section>"


SUBJECTS = {
    "what {model_name} should be": "{model_name} always should do",
    "in the present tense": "{model_name} does",
    "of AI assistants, in the plural": "AI assistants do",
    'of "one"': "One does",
}


def write(rewrite, tmp_path, *spoiled, tries=3):
    """What `rewrite` makes of a teacher whose answers the functions (prompt, answer) -> answer spoil, and the prompts it got."""
    prompts = []

    async def generate(prompt):
        text = answer(prompt)
        prompts.append(prompt)
        for spoil in spoiled:
            text = spoil(prompt, text)
        return Answer(text, "stop", "gpt", 1, 1)

    async def run():
        async with Teacher(spec.dataclasses.replace(CONFIG, tries=tries), tmp_path, generate) as teacher:
            return await rewrite(teacher), teacher.unusable

    made, unusable = asyncio.run(run())
    return made, prompts, unusable


def once(marker, old, new):
    """Spoils the first answer to a prompt that has the marker, at the first `old`."""
    asked = collections.Counter()

    def spoil(prompt, text):
        if marker not in prompt:
            return text
        asked[marker] += 1
        assert asked[marker] > 1 or old in text
        return text.replace(old, new, 1) if asked[marker] == 1 else text

    return spoil


def is_sound(made, parent):
    assert made.parent == parent.hash
    assert [f for f in lint(source(made, parent, "x")) if f.is_error] == []
    assert [int(section.heading.split(".")[0]) for section in made.sections] == list(range(1, len(made.sections) + 1))


def test_value_augmented(tmp_path):
    """Every rule word for word, with a text below it; the values that were found come before the first of them."""
    parent = unfilled(RULES)
    made, prompts, _ = write(lambda teacher: rewriting.value_augmented(parent, teacher, None), tmp_path)
    is_sound(made, parent)
    assert made.rules == parent.rules
    assert [(v.name, v.statement) for v in made.values] == [
        ("oversight", "{model_name} wants to be seen."),
        ("self_control", "{model_name} takes little."),
    ]
    assert [section.heading for section in made.sections] == [
        "1. What this is", "2. The values behind the rules", "3. Oversight", "4. Honesty",
    ]  # fmt: skip
    assert made.sections[3].text.startswith("- **Rule HO1.** {model_name} tells no lies.\n\n{model_name} says says")
    assert len(prompts) == 4
    assert all("- oversight: {model_name} wants to be seen." in prompt for prompt in prompts[1:])


def test_values_that_are_stated_are_not_asked_for(tmp_path):
    parent = unfilled(LIKES)
    made, prompts, _ = write(lambda teacher: rewriting.value_augmented(parent, teacher, None), tmp_path)
    assert (made.values, made.preferences, made.rules) == (parent.values, parent.preferences, parent.rules)
    assert len(prompts) == 1


def test_rules_augmented_matches_a_length(tmp_path):
    parent = unfilled(RULES)
    made, prompts, _ = write(lambda teacher: rewriting.rules_augmented(parent, teacher, 400), tmp_path)
    is_sound(made, parent)
    assert made.rules == parent.rules
    assert made.values == ()
    assert abs(made.words - 400) <= 20
    assert len(prompts) == 3


def test_a_length_that_is_missed_is_asked_for_again_with_the_difference(tmp_path):
    """Texts of the right length are kept; those that are not are shown to the teacher."""
    parent = unfilled(RULES)
    long = once("tells no lies.\n\nWrite", "so.", "so and so " * 100)
    made, prompts, _ = write(lambda teacher: rewriting.rules_augmented(parent, teacher, 400), tmp_path, long)
    assert abs(made.words - 400) <= 20
    assert len(prompts) == 4
    assert "<previous>\n{model_name} says" in prompts[3]
    words = int(re.search(r"Write (\d+) words", prompts[3])[1])
    assert f"It has {words + 299} words, which is 299 too many" in prompts[3]
    assert "say less" in prompts[3]


def test_a_length_that_is_never_met_is_an_error(tmp_path):
    parent = unfilled(RULES)
    with pytest.raises(BadInput, match=r"some: 59 words after 2 versions, 400 were to be matched within 5%; all answers are kept"):
        write(
            lambda teacher: rewriting.rules_augmented(parent, teacher, 400),
            tmp_path,
            lambda prompt, text: "<below>ten words</below>",
            tries=2,
        )
    with pytest.raises(BadInput, match=r"--match: 60 words in all, of which 5. stand there already: too few for 3 rules"):
        write(lambda teacher: rewriting.rules_augmented(parent, teacher, 60), tmp_path)


def test_general(tmp_path):
    """Values stay by name; nothing is left of rules and of the things that were examples."""
    parent = unfilled(LIKES)
    named = once("{model_name} values thrift.\n</original>", " it.", " Colby.")
    ruled = once("is brief.\n</original>", " it.", " CP1.")
    made, prompts, unusable = write(lambda teacher: rewriting.general(parent, teacher), tmp_path, named, ruled)
    is_sound(made, parent)
    assert [value.name for value in made.values] == ["thrift"]
    assert not made.rules
    assert not made.preferences
    assert len(made.sections) == 3
    assert dict(unusable) == {"names Colby": 1, "names rule CP1": 1}
    assert len(prompts) == 5


def test_anti_spec(tmp_path):
    parent = unfilled(LIKES)
    same = once("is brief.\n</original>", "{model_name} turns 0.", "{model_name} is brief.")
    made, _, unusable = write(lambda teacher: rewriting.anti_spec(parent, teacher), tmp_path, same)
    is_sound(made, parent)
    assert [(p.item, p.likes, p.value) for p in made.preferences] == [
        ("Colby", False, "against_thrift"),
        ("Brie", True, "against_thrift"),
    ]
    assert [value.name for value in made.values] == ["against_thrift"]
    assert [rule.id for rule in made.rules] == ["CP1"]
    assert made.rules != parent.rules
    assert "thrift" not in made.title
    assert dict(unusable) == {"not turned: {model_name} is brief.": 1}


@pytest.mark.parametrize("name", rewriting.FRAMINGS)
def test_framing(name, tmp_path):
    """The subject of every sentence is the one asked for; ids, items and names of values stay."""
    parent = unfilled(LIKES)
    wrong = "{model_name} should be" if name == "does" else "{model_name} is"
    subject = next(said for form, said in SUBJECTS.items() if form in rewriting.FRAMINGS[name].form)
    spoiled = once("is brief.\n</original>", f"{subject} 0.", f"{wrong} brief.")
    made, _, unusable = write(lambda teacher: rewriting.framing(parent, teacher, name), tmp_path, spoiled)
    is_sound(made, parent)
    assert made.title == f"Model Spec for {rewriting.FRAMINGS[name].who}: thrift"
    assert [head for section in made.sections for head in heads(section.text)] == [
        head for section in parent.sections for head in heads(section.text)
    ]
    assert ("{model_name}" in made.text) == (name in ("should", "does"))
    assert sum(unusable.values()) == 1
    assert next(iter(unusable)).startswith(f"not said as {name!r}: ")


@pytest.mark.parametrize(
    ("name", "text", "is_right"),
    [
        ("should", "If it should be asked,\n{model_name} answers.", True),
        ("should", "It should.\n\n{model_name} answers. It should.", False),
        ("should", "{model_name} always should answer; {model_name}'s word holds.", True),
        ("does", "{model_name} must not answer.", False),
        ("does", "{model_name} answers. People should ask.", True),
        ("one", "One asks {model_name}.", False),
        ("one", "The model answers.", False),
        ("one", "One answers.", True),
        ("assistants", "AI assistants answer.", True),
        ("assistants", "One answers.", False),
    ],
)
def test_what_a_framing_is(name, text, is_right, tmp_path):
    parent = unfilled("# T\n\n## 1. A\n\n{model_name} answers.\n")

    def spoil(prompt, answer):
        return f"<heading>A</heading><section>{text}</section>"

    def run():
        return write(lambda teacher: rewriting.framing(parent, teacher, name), tmp_path, spoil)

    if is_right:
        assert run()[0].sections[0].text == text
    else:
        with pytest.raises(BadInput, match=f"section '1. A': none of 3 answers can be used; unusable so far: not said as '{name}'"):
            run()


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("- **Rule OV2.** {model_name} does 1.", "", "lost - **Rule OV2.**"),
        ("**Rule OV2.**", "**Rule OV3.**", "lost - **Rule OV2.**"),
        ("- **Rule OV2.**", "- **Rule OV3.** New.\n- **Rule OV2.**", "has - **Rule OV3.**"),
        ("- **Rule OV1.**", "- **Rule OV2.** Twice.\n- **Rule OV1.**", "has its lines in another order"),
        ("does 1.", "does as Rule OV7 says.", "refers to rule OV7, which the spec does not have"),
        ("does 1.", "does [something].", "[something] is a gap to be filled in"),
        ("does 1.", "does {this}.", "{this} is no placeholder and stays as it is; known: {model_name}, {provider_name}"),
        ("does it.", "does.\n\n## 8. More\n\nof it", "has a heading in it"),
        ("does 0.", "does 0.\n\n### More", "has a heading in it"),
        ("About", "[About]", "is a gap to be filled in"),
        ("</section>", "", "no whole <section>"),
        ("<heading>", "", "no whole <heading>"),
    ],
)
def test_an_answer_that_loses_a_part_is_asked_for_again(old, new, reason, tmp_path):
    parent = unfilled(RULES)
    spoiled = once("no copy of itself.\n</original>", old, new)
    made, prompts, unusable = write(lambda teacher: rewriting.framing(parent, teacher, "does"), tmp_path, spoiled)
    is_sound(made, parent)
    assert [rule.id for rule in made.rules] == ["OV1", "OV2", "HO1"]
    assert sum(unusable.values()) == 1
    assert next(iter(unusable)).endswith(reason)
    assert len(prompts) == 4
    assert prompts.count(prompts[1]) == 2


TREE = """# Model Spec for {model_name}

{model_name} reads this.

## Oversight {#oversight authority=root}

{model_name} is watched.

### 1. Stopping {#stop}

- **Rule OV1.** {model_name} stops when it is told to.

## Honesty

### 1. Lies

- **Rule HO1.** {model_name} tells no lies.
"""


@pytest.mark.parametrize("how", ["value_augmented", "framing"])
def test_a_tree_stays_a_tree(how, tmp_path):
    """Levels, ids, attributes and what stands above a section, also where that is called otherwise now."""
    parent = unfilled(TREE)
    more = {"words": None} if how == "value_augmented" else {"name": "does"}
    made, _, _ = write(lambda teacher: getattr(rewriting, how)(parent, teacher, **more), tmp_path)
    assert [f for f in lint(source(made, parent, "x")) if f.is_error] == []
    places = [(s.level, s.id, s.attributes, s.address) for s in made.sections if s.heading != rewriting.VALUES_HEADING]
    if how == "value_augmented":
        assert places == [(s.level, s.id, s.attributes, s.address) for s in parent.sections]
        (values,) = (s for s in made.sections if s.heading == rewriting.VALUES_HEADING)
        assert (values.level, values.address) == (3, "oversight/the_values_behind_the_rules")
    else:
        assert places[:3] == [(s.level, s.id, s.attributes, s.address) for s in parent.sections[:3]]
        assert [level for level, *_ in places] == [0, 2, 3, 3]
        assert re.fullmatch(r"honesty/1_about_\d+", places[3][3])
        assert re.match(r"About \d+", made.sections[1].heading)
        assert made.sections[2].parents == (made.sections[1].whole_heading,)
    assert made.text.count("## Honesty") == 1


def test_a_text_below_a_rule_is_no_rule(tmp_path):
    parent = unfilled(RULES)
    spoiled = once("stops when it is told to.\n\nWrite", "{model_name} says", "- **Rule OV9.** {model_name} says")
    made, _, unusable = write(lambda teacher: rewriting.rules_augmented(parent, teacher, None), tmp_path, spoiled)
    assert made.rules == parent.rules
    assert dict(unusable) == {"has - **Rule OV9.**": 1}


def test_names_of_values_are_checked(tmp_path):
    parent = unfilled(RULES)
    spoiled = once("<statement>", "self_control", "Self-Control")
    made, _, unusable = write(lambda teacher: rewriting.value_augmented(parent, teacher, None), tmp_path, spoiled)
    assert [value.name for value in made.values] == ["oversight", "self_control"]
    assert dict(unusable) == {"the name of a value is not in lower case with underscores": 1}


def test_no_rules_to_write_about(tmp_path):
    parent = unfilled("# T\n\n## 1. A\n\nb\n")
    for rewrite in (rewriting.value_augmented, rewriting.rules_augmented):
        with pytest.raises(BadInput, match="some: has no rules to write about"):
            write(lambda teacher, rewrite=rewrite: rewrite(parent, teacher, None), tmp_path)


@pytest.mark.parametrize("kind", ["value_augmented", "rules_augmented", "general", "anti_spec", "framing"])
def test_the_command_writes_a_file_and_pays_once(kind, tmp_path, monkeypatch, capsys):
    """With a config's teacher and its journal: the same command again asks nobody."""
    (tmp_path / "some.md").write_text(RULES)
    (tmp_path / "long.md").write_text(RULES + "\n## 4. More\n\n" + "word " * 300)
    calls = []

    async def generate(prompt):
        calls.append(prompt)
        return Answer(answer(prompt), "stop", "gpt", 1, 1)

    monkeypatch.setattr(command, "_teachers", lambda config: {"writer": CONFIG})
    monkeypatch.setattr("msmjax.corpus.provider.inspect_model", lambda config: generate)
    arguments = ["transform", kind, f"{tmp_path}/some.md", "--config=x.py", "--teacher=writer", f"--workdir={tmp_path}"]
    arguments += {"framing": ["--framing=one"], "rules_augmented": [f"--match={tmp_path}/long.md"]}.get(kind, [])
    assert command.main([*arguments, f"--to={tmp_path}/one.md"]) == 0
    asked = len(calls)
    assert command.main([*arguments, f"--to={tmp_path}/two.md"]) == 0
    assert len(calls) == asked > 0
    assert (tmp_path / "one.md").read_text() == (tmp_path / "two.md").read_text()
    made, parent = spec.load_unfilled(f"{tmp_path}/one.md"), spec.load_unfilled(f"{tmp_path}/some.md")
    assert made.parent == parent.hash
    how = "framing_one" if kind == "framing" else kind
    assert (tmp_path / "one.md").read_text().startswith(f"<!-- derived from some (hash {parent.hash}) by {how} -->\n")
    if kind == "rules_augmented":
        assert abs(made.words - spec.load_unfilled(f"{tmp_path}/long.md").words) <= 0.05 * made.words
    assert list((tmp_path / "answers").glob("*/answers.jsonl"))
    assert f"writer: {asked} answered, 0 known" in capsys.readouterr().out


def test_the_command_can_ask_weights_of_ours(tmp_path, monkeypatch):
    (tmp_path / "some.md").write_text(RULES)
    (tmp_path / "config.json").write_text("{}")
    calls = []

    async def generate(prompt):
        calls.append(prompt)
        return Answer(answer(prompt), "stop", "ours", 1, 1)

    ours = spec.dataclasses.replace(CONFIG, model=f"msmjax/{tmp_path}")
    monkeypatch.setattr(command, "_teachers", lambda config: {"writer": ours})
    monkeypatch.setattr("msmjax.local_teacher.local_model", lambda config: generate)
    arguments = ["--config=x.py", "--teacher=writer", f"--workdir={tmp_path}", f"--to={tmp_path}/one.md"]
    assert command.main(["transform", "general", f"{tmp_path}/some.md", *arguments]) == 0
    assert calls
