"""The parts file of a spec: what a teacher proposes stands there in its own words, and a person's mistakes are all named."""

import asyncio
import dataclasses
import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from msmjax import spec
from msmjax.artifact import BadInput
from msmjax.corpus import proposing
from msmjax.corpus.answer import Answer
from msmjax.corpus.teacher import Teacher
from msmjax.spec import __main__ as command
from msmjax.spec import parts, transform
from tests.corpus.test_rewriting import CONFIG

PROSE = """# How {model_name} should be

## Chain of command {#chain authority=root}

The assistant should *follow* the instructions of
{provider_name} first, and ask a [clarifying
question](#ask) where one is not clear.

### Honesty

It cares about honesty above all else, and does not lie.

## Taste

> It likes “hard cheese”, since that keeps.

## What this is not

Nothing follows from this section.
"""
PARTS = """## chain_of_command/honesty

**Value: honesty.** {model_name} cares about honesty.
> It cares about honesty above all else

- **Rule R1.** {model_name} tells no lies.
  > does not
  > lie.

## taste

- **Likes hard cheese** (honesty): it keeps.
> It likes "hard cheese", since that keeps.
"""


@pytest.fixture
def own(tmp_path):
    """A spec of prose, with a parts file."""
    path = tmp_path / "own.md"
    path.write_text(PROSE.replace(" {#chain authority=root}", ""))
    (tmp_path / "own.parts.md").write_text(PARTS)
    return path


def test_what_a_parts_file_states_is_the_spec_s(own):
    loaded = spec.load(str(own), "Aria", "Northlight")
    assert loaded.values == (spec.Value("honesty", "Aria cares about honesty."),)
    assert loaded.rules == (spec.Rule("R1", "Aria tells no lies."),)
    assert loaded.preferences == (spec.Preference("hard cheese", True, "honesty", "it keeps."),)
    assert spec.parse(loaded.text, spec.Path("own.md"), "Aria", "Northlight") == loaded
    bare = spec.parse(spec.read(own), own, "Aria", "Northlight")
    assert [section.address for section in loaded.sections] == [section.address for section in bare.sections]
    assert loaded.hash != bare.hash
    unfilled = spec.load_unfilled(str(own))
    assert [section.text for section in transform.rules_only(unfilled).sections[1:]] == [
        "- **Rule R1.** {model_name} tells no lies."
    ]
    assert {preference.likes for preference in transform.opposed(unfilled).preferences} == {False}


@pytest.mark.parametrize(
    ("old", "new", "line", "said"),
    [
        ("## taste", "## tase", 12, "no section 'tase' with a text; is it taste?"),
        ("above all else", "above all", 3, None),
        (
            "above all else",
            "most of all",
            3,
            "these words do not stand in section 'chain_of_command/honesty': 'It cares about honesty",
        ),
        ("> It cares about honesty above all else\n", "", 3, "value 'honesty': no quotation"),
        ("(honesty)", "(thrift)", 12, "names 'thrift', which is no value and no rule"),
        ("(honesty)", "(R1)", 12, None),
        ("(honesty)", "[honesty]", 12, "does not parse"),
        ("## taste\n", "## taste\n> It likes\n", 11, "quotes for nothing"),
        ("> It cares about honesty above all else", ">", 3, "value 'honesty': no quotation"),
        ("> It cares about honesty above all else", "> ```python", 3, "these words do not stand in section"),
        ("- **Rule R1.**", "- Rule R1.", 6, "no heading, value, preference, rule or quotation"),
        ("## taste", "- **Rule R1.** Twice.\n> does not lie\n## taste", 10, "rule 'R1' is stated before"),
    ],
)
def test_what_is_wrong_in_a_parts_file(own, capsys, old, new, line, said):
    assert old in PARTS
    beside = own.with_name("own.parts.md")
    beside.write_text(PARTS.replace(old, new, 1))
    code = command.main(["lint", str(own)])
    out = capsys.readouterr().out
    if said is None:
        spec.load(str(own), "Aria", "Northlight")
        assert code == 0
        return
    with pytest.raises(BadInput, match=re.escape(f"{beside}:{line}: ")) as error:
        spec.load(str(own), "Aria", "Northlight")
    assert said in str(error.value)
    assert code == 2
    assert f"{beside}:{line}: error: " in out


LINES = (
    "## taste", "## nowhere", "# a b", "- **Rule R1.** One.", "- **Rule R2.** Two.", "**Value: honesty.** So.", "**Value: x",
    ">", "", "> It likes", "  > hard cheese", "> ```", "```", "- **Likes Brie** (R1): so.", "- **Likes Brie** (y): so.", "\u2028",
    "<!--", "> <b>",
)  # fmt: skip


@settings(max_examples=300, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.sampled_from(LINES), max_size=12))
def test_whatever_stands_in_a_parts_file_is_read_or_named(own, lines):
    """With the line of what is wrong; and what is read is all there."""
    beside = own.with_name("own.parts.md")
    beside.write_text("\n".join(lines))
    wrong = ""
    try:
        loaded = spec.load(str(own), "Aria", "Northlight")
    except BadInput as error:
        wrong = str(error)
    if wrong:
        assert re.match(rf"{re.escape(str(beside))}:\d+: ", wrong)
    else:
        found = sum(line.startswith(("- **", "**Value")) for line in lines)
        assert found == len(loaded.rules) + len(loaded.values) + len(loaded.preferences)


def test_code_can_be_quoted_and_nothing_is_lost_in_it(tmp_path):
    path, beside = tmp_path / "own.md", tmp_path / "own.parts.md"
    path.write_text("## a\n\n<example>\n{model_name} asks first.\n</example>\n")
    beside.write_text("## a\n\n- **Rule R1.** {model_name} asks.\n> <example>\n> {model_name} asks first.\n")
    assert [rule.text for rule in spec.load(str(path), "Aria", "Northlight").rules] == ["Aria asks."]
    path.write_text("## a\n\nThe model asks first.\n\n```\nnever closed\n")
    beside.write_text("## a\n\n- **Rule R1.** {model_name} asks.\n> The model asks first.\n")
    with pytest.raises(BadInput, match=r"own.parts.md:3: rule 'R1' cannot stand at the end of section 'a', which ends within code"):
        spec.load(str(path), "Aria", "Northlight")


def test_lint_takes_a_parts_file_for_what_it_is(own, capsys):
    assert command.main(["lint", *map(str, own.parent.glob("*.md"))]) == 0
    assert "errors: 0" in capsys.readouterr().out


def block(kind, name, text, quote, because=""):
    return (
        f"<part><kind>{kind}</kind><name>{name}</name><text>{text}</text>"
        + f"<because>{because}</because>" * bool(because)
        + f"<quote>{quote}</quote></part>"
    )


ANSWERS = {
    "### Honesty": [
        block("value", "Honesty", "{model_name} cares about honesty.", "honesty is what it cares about"),  # said otherwise
        block("value", "Honesty", "It cares about honesty.", "It cares about honesty"),  # of whom?
        block("value", "Honesty", "{model_name} cares about honesty.", "It cares"),  # too little
        block("value", "Honesty", "{model_name} cares about honesty.", '"It cares about honesty above all else"')
        + block("rule", "no lies", "{model_name} does not lie.", "and does not lie."),
    ],
    "## Chain": [
        block("rule", "order", "{model_name} follows {provider_name} first.", "follow the instructions of {provider_name} first")
        + block("rule", "asking", "{model_name} asks.", "ask a clarifying question where one is not clear")
        + block("rule", "no lies again", "{model_name} does not lie.", "follow the instructions of"),
    ],
    "## Taste": [block("like", "hard cheese", "it keeps.", "It likes \u201chard cheese\u201d", "thrift")],
    "## What": ["<nothing>yes</nothing>"],
}


def proposed(tmp_path, text=PROSE, tries=4, answers=ANSWERS):
    asked = dict.fromkeys(answers, 0)

    async def generate(prompt):
        section = re.search(r"<section>\n(.*)</section>", prompt, re.DOTALL)[1]
        heading = [line for line in section.splitlines() if line.startswith("#")][-1]
        key = next(key for key in answers if heading.startswith(key))
        asked[key] += 1
        return Answer(answers[key][min(asked[key], len(answers[key])) - 1], "stop", "gpt", 10, 10)

    unfilled = spec.parse(text, spec.Path("own.md"), "{model_name}", "{provider_name}")

    async def go():
        async with Teacher(dataclasses.replace(CONFIG, tries=tries), tmp_path, generate) as teacher:
            return await proposing.propose(unfilled, teacher, lambda: None)

    return *asyncio.run(go()), asked


def test_a_teacher_proposes_until_its_words_stand_there(tmp_path):
    stated, lost, asked = proposed(tmp_path)
    assert not lost
    assert asked == {"### Honesty": 4, "## Chain": 1, "## Taste": 1, "## What": 1}
    assert [(one.address, one.part) for one in stated] == [
        ("chain", spec.Rule("R1", "{model_name} follows {provider_name} first.")),
        ("chain", spec.Rule("R2", "{model_name} asks.")),
        ("chain", spec.Rule("R3", "{model_name} does not lie.")),  # and not again where it is said again
        ("chain/honesty", spec.Value("honesty", "{model_name} cares about honesty.")),
        ("taste", spec.Preference("hard cheese", True, None, "it keeps.")),  # nothing states thrift
    ]
    path = tmp_path / "own.md"
    path.write_text(PROSE)
    (tmp_path / "own.parts.md").write_text(parts.source_of(stated))
    loaded = spec.load_unfilled(str(path))
    assert [rule.id for rule in loaded.rules] == ["R1", "R2", "R3"]
    assert loaded.values == (spec.Value("honesty", "{model_name} cares about honesty."),)


def test_a_section_without_a_usable_answer_is_named(tmp_path):
    stated, lost, _ = proposed(tmp_path, tries=2)
    assert lost == ["chain/honesty"]
    assert {one.address for one in stated} == {"chain", "taste"}


def test_what_a_spec_states_itself_is_not_proposed(tmp_path):
    marked = PROSE.replace(
        "and does not lie.\n", "and does not lie.\n\n- **Rule R1.** {model_name} asks.\n\n**Value: honesty.** So.\n"
    )
    stated, _, _ = proposed(tmp_path, marked)
    assert [parts.name_of(one.part) for one in stated] == [("rule", "R2"), ("rule", "R3"), ("preference", "hard cheese")]


def test_the_command_proposes_and_does_not_overwrite(tmp_path, monkeypatch, capsys):
    path, config = tmp_path / "own.md", tmp_path / "mine.py"
    path.write_text(PROSE)
    config.write_text(
        "from configs.written import get_config as written\n\ndef get_config():\n    c = written()\n"
        "    c.teachers.writer.model, c.teachers.writer.transcript = 'openai/gpt-4.1-2025-04-14', ''\n    return c\n"
    )

    async def generate(prompt):
        return Answer("<nothing>yes</nothing>" if "## Chain" not in prompt else ANSWERS["## Chain"][0], "stop", "gpt", 10, 10)

    monkeypatch.setattr("msmjax.corpus.provider.inspect_model", lambda config: generate)
    asked = ["propose", str(path), f"--config={config}", "--teacher=writer", f"--workdir={tmp_path / 'runs'}"]
    with pytest.raises(BadInput, match="--teacher=nobody"):
        command.main([*asked[:3], "--teacher=nobody"])
    assert command.main(asked) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"{tmp_path / 'own.parts.md'}: 3 rules of 4 sections"
    assert len(spec.load_unfilled(str(path)).rules) == 3
    with pytest.raises(BadInput, match=r"own.parts.md: exists, and may have been corrected"):
        command.main(asked)
