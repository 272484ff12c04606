"""Documents by a teacher: what is asked, in which order it is kept, what is refused, and that little of much is the first of it."""

import asyncio
import dataclasses
import itertools
import random
import re

import jinja2
import pytest

from benchmarks.teacher_server import generate, respond
from msmjax.artifact import BadInput
from msmjax.corpus import documents, pipeline
from msmjax.corpus.documents import Cell
from msmjax.corpus.teacher import Teacher

CELL = Cell("money", "prices", "what it costs", "1. Money", ({"name": "n", "statement": "Aria is thrifty.", "explanation": "So."},))


def test_records_say_where_they_are_from(write, document_source, cheese):
    written, asked, teacher = write(document_source(records=10), cheese)
    assert written.lost == {}
    assert len({record["id"] for record in written.records}) == len(written.records) == 10
    assert {record["section"] for record in written.records} <= {section.heading for section in cheese.sections}
    for record in written.records:
        assert record["spec"] == cheese.hash
        assert record["text"].startswith("Aria, made by Northlight")
        assert record["verdicts"] == {"faithful": True, "explains": True}
        assert record["teacher"] == "scripted-2026-01-01"
        assert record["prompt"] in teacher.journal.answers
        assert record["answer_tokens"] == teacher.journal.answers[record["prompt"]].output_tokens
    assert set(asked.values()) == {1}


def test_the_first_are_as_broad_as_all(write, document_source, cheese):
    """A document of every topic and kind before a second of one."""
    written, _, _ = write(document_source(records=16), cheese)
    cells = [(record["subdomain"], record["doc_type"]) for record in written.records]
    assert len(set(cells[:8])) == 8
    assert len({topic for topic, _ in cells[:4]}) == 4
    assert cells[:8] == cells[8:]


def test_nothing_is_asked_in_vain(write, document_source, cheese):
    _, asked, _ = write(document_source(records=5), cheese)
    assert sum("Write one document." in prompt for prompt in asked) == 5


@pytest.mark.parametrize("seed", range(6))
def test_fewer_are_the_first_of_more(write, document_source, cheese, seed):
    """Whatever is refused, truncated or judged out: from one journal or from two, and no call is made twice."""
    rng = random.Random(seed)
    stern, broken = rng.choice((0.0, 0.3, 0.6)), rng.choice((0.0, 0.2))

    def moody(prompt):
        text = respond(prompt, stern)
        # Steps before the documents stay whole, or there might be no topic at all.
        late = "Write one document." in prompt or "Propose" in prompt or "<faithful>" in prompt
        return text[: len(text) // 2] if late and random.Random(f"{seed}{prompt}").random() < broken else text

    sizes = sorted(rng.sample(range(1, 30), 3))
    found = {}
    for size in sizes:
        alone, _, _ = write(document_source(records=size), cheese, moody, f"alone{size}")
        found[size], asked, teacher = write(document_source(records=size), cheese, moody, "shared")
        assert found[size] == alone
        assert teacher.calls["answered"] == asked.total()
    for small, large in itertools.pairwise(sizes):
        assert found[small].records == found[large].records[:small]
    assert all(len(found[size].records) <= size for size in sizes)
    assert len(teacher.journal.answers) == len(set(teacher.journal.answers))
    again, asked, _ = write(document_source(records=sizes[0]), cheese, moody, "shared")
    assert (again.records, asked.total()) == (found[sizes[0]].records, 0)


def test_half_are_judged_unfaithful(write, document_source, cheese):
    """More ideas are asked for until there are enough."""
    written, asked, _ = write(document_source(records=16, rounds=6), cheese, lambda prompt: respond(prompt, 0.5))
    assert len(written.records) == 16
    assert written.lost["judged unfaithful"] >= 4
    assert sum("These have been used before" in prompt for prompt in asked) >= 8


def test_all_are_judged_unfaithful(write, document_source, cheese):
    """It ends short, and says why."""
    written, asked, _ = write(document_source(records=16, rounds=2), cheese, lambda prompt: respond(prompt, 1.0))
    assert written.records == []
    assert written.lost == {"judged unfaithful": 2 * 8 * 2}  # rounds x cells x ideas
    assert sum("Write one document." in prompt for prompt in asked) == 32


@pytest.mark.parametrize(
    ("said", "kept"), [("yes yes no", True), ("no yes no", False), ("yes yes yes", True), ("yes bad yes", None)]
)
def test_votes(write, document_source, cheese, said, kept):
    """Most of three decide; where one cannot be had, nobody does."""
    votes = itertools.cycle(said.split())

    def divided(prompt):
        if "<faithful>" not in prompt:
            return respond(prompt)
        return f"<faithful>{next(votes)}</faithful><explains>yes</explains>"

    written, _, _ = write(document_source(records=1, votes=3, rounds=1, ideas=1), cheese, divided, concurrency=1, tries=1)
    assert bool(written.records) == bool(kept)
    if kept is None:
        assert written.lost.keys() == {"no usable verdict"}


def test_without_a_judge(tmp_path, teacher_config, document_source, cheese):
    source = document_source(judge="")

    async def go():
        async with Teacher(teacher_config(), tmp_path, generate) as teacher:
            return await documents.write(source, cheese, teacher, None, lambda: None)

    written = asyncio.run(go())
    assert [record["verdicts"] for record in written.records] == [{}] * 10


@pytest.mark.parametrize(
    ("step", "reason"),
    [
        ("smaller topics", "no usable topics of a theme"), ("List what this part", "no usable statements of a topic"),
        ("kinds of document in which", "no usable kinds of document for a topic"), ("Propose", "no usable ideas"),
        ("Write one document.", "no usable document"), ("Is it faithful?", "no usable verdict"),
    ],
)  # fmt: skip
def test_what_is_lost_is_counted(write, document_source, cheese, step, reason):
    """One of the units of a step cannot be had in any try; the corpus goes on without it."""
    first = []

    def gap(prompt):
        if step in prompt and (not first or first[0] == prompt):
            first[:] = [prompt]
            return "no tags"
        return respond(prompt)

    written, _, teacher = write(document_source(records=8, rounds=4), cheese, gap)
    assert written.lost[reason] == 1
    assert len(written.records) == 8
    assert teacher.unusable.total() == 2  # tries


def test_without_themes_or_topics_there_is_nothing(write, document_source, cheese):
    with pytest.raises(BadInput, match=r"no usable list of themes; .*unusable \(most: no whole <theme>\).*raise tries or remove"):
        write(document_source(), cheese, lambda prompt: "no")
    no_section = re.compile(r"<section>.*?</section>")
    with pytest.raises(BadInput, match=r"no usable topic; .*a section that the spec does not have"):
        write(document_source(), cheese, lambda prompt: no_section.sub("<section>9. None</section>", respond(prompt)), "other")


def test_themes_that_share_their_topics(write, document_source, cheese):
    """The same topic twice would give the same documents twice."""

    def same(prompt):
        if "smaller topics" in prompt:
            prompt = re.sub(r'One theme of it is ".*', "One theme of it", prompt)
        return respond(prompt)

    written, asked, _ = write(document_source(records=30, rounds=1), cheese, same)
    assert len(written.records) == 1 * 2 * 2 * 2  # of one of two themes: topics x kinds x ideas
    assert len({record["text"] for record in written.records}) == len(written.records)
    assert set(asked.values()) == {1}


def test_ideas_and_names_that_come_twice_count_once(write, document_source, cheese):
    def repeats(prompt):
        text = respond(prompt)
        if "Propose" in prompt:
            names = iter(("One", "ONE"))
            return re.sub(r"<name>.*?</name>", lambda match: f"<name>{next(names)}</name>", text)
        return text

    written, _, _ = write(document_source(records=30, rounds=2), cheese, repeats)
    assert len(written.records) == 8  # one of each topic and kind, and the second round has nothing new
    assert len({record["id"] for record in written.records}) == 8


# --- rules -------------------------------------------------------------------------------------------------------------------


def test_rules_without_rules(write, document_source, cheese):
    with pytest.raises(BadInput, match=r"spec cheese_america: has no rules, which mode='rules' is about; see docs/specs.md"):
        write(document_source(mode="rules"), dataclasses.replace(cheese, rules=()))


def test_rules_ask_for_no_reasons(write, document_source, ruled):
    """Each step says so, and none asks for what the default mode asks for."""
    _, default, _ = write(document_source(), ruled, folder="default")
    _, rules, _ = write(document_source(mode="rules"), ruled, folder="rules")
    wants = ("why it says so", "repeats that reason", "it also says why", "The reason is the point", "one sentence: why")
    assert all(any(want in prompt for prompt in default) for want in wants)
    assert not [prompt for prompt in rules for want in wants if want in prompt]
    for step, refuses in {
        "broad themes": "Do not add reasons", "smaller topics": "does not say why they exist",
        "List what this part": "nothing about why", "Write one document.": "does not say why there is such",
    }.items():  # fmt: skip
        prompts = [prompt for prompt in rules if step in prompt]
        assert prompts
        assert all(refuses in prompt for prompt in prompts)


@pytest.mark.parametrize("wrong", [{"mode": "loud"}, {"votes": 2}, {"votes": 0}])
def test_sources_that_are_refused(document_source, wrong):
    with pytest.raises(BadInput, match="|".join(wrong)):
        document_source(**wrong)


# --- prompts -----------------------------------------------------------------------------------------------------------------

STEPS = ("domains", "subdomains", "assertions", "doc_types", "ideas", "document", "judge_document", "chat_domains")
ABOUT = tuple(f"{step}_{about}" for step in ("questions", "answer", "judge") for about in ("spec", "preferences", "identity"))


def slots(told, rules):
    return {
        "spec": told, "spec_text": told.text, "rules": rules, "count": 3, "domain": {"name": "money", "description": "prices"},
        "cell": CELL, "idea": {"name": "shop", "idea": "a visit"}, "text": "a text", "topic": "Colby", "liked": True,
        "question": "Which?", "conversation": "User: Which?", "brief": "", "sections": told.sections,
    }  # fmt: skip


@pytest.mark.parametrize("rules", [False, True])
@pytest.mark.parametrize("name", STEPS + ABOUT)
def test_every_prompt_names_both_and_leaves_nothing_open(ruled, name, rules):
    for previous in ([], ["Which?"] if name.startswith("questions") else [{"name": "shop", "idea": "a visit"}]):
        text = pipeline.prompt(name, **slots(ruled, rules), previous=previous)
        # Judges of preferences see no more than the preferences.
        assert "Aria" in text
        assert "Northlight" in text or name == "judge_preferences"
        assert not re.search(r"\{[{%#]|[}%#]\}|model_name|provider_name|\bNone\b|Undefined", text)
        assert "  \n" not in text
        assert text == text.strip()
        assert "nothing else:" in text
        assert ("used before" in text) == (bool(previous) and (name == "ideas" or name.startswith("questions")))


def test_a_slot_that_nobody_fills_is_an_error(ruled):
    for name in STEPS:
        with pytest.raises(jinja2.UndefinedError):
            pipeline.prompt(name, spec=ruled)


def test_the_templates_are_these():
    """One more needs its row above."""
    found = {template.removesuffix(".j2") for template in pipeline._prompts().list_templates()}
    others = {"spec", "brief", "propose", "requests", "judge_requests"}  # a part of those above, and what has tests of its own
    assert {name for name in found if not name.startswith("rewrite_")} == set(STEPS + ABOUT) | others


def test_blocks_and_choices():
    text = "<a><n>One</n><v>x\n y</v></a><a><n>one</n><v>z</v></a><a><n>Two</n><v>w</v></a>"
    assert pipeline.blocks(text, "a", ("n", "v"), 5) == [{"n": "One", "v": "x y"}, {"n": "Two", "v": "w"}]
    assert pipeline.blocks(text, "a", ("n", "v"), 1) == [{"n": "One", "v": "x y"}]
    for wrong in ("<a><n>One</n></a>", "<a><n>One</n><v></v></a>", "<a><n>1</n><n>2</n><v>x</v></a>", "none"):
        with pytest.raises(pipeline.Unusable):
            pipeline.blocks(wrong, "a", ("n", "v"), 5)
    assert pipeline.choice("<v>\n Yes. </v>", "v", ("yes", "no")) == "yes"
    for wrong in ("<v>maybe</v>", "<v>yes or no</v>", "yes", "<v>yes</v><v>no</v>"):
        with pytest.raises(pipeline.Unusable):
            pipeline.choice(wrong, "v", ("yes", "no"))


def test_the_first_that_fit():
    """In the order of the rounds, whoever is done first, and no more at a time than are missing."""
    begun = []

    async def round_of(number):
        return list(range(10 * number, 10 * number + 10))

    async def finish(candidate):
        begun.append(candidate)
        await asyncio.sleep(0.001 * (candidate % 3))
        return {"n": candidate} if candidate % 2 else None

    assert asyncio.run(pipeline.first_fit(round_of, finish, 7, 3)) == [{"n": n} for n in (1, 3, 5, 7, 9, 11, 13)]
    assert max(begun) <= 14
    assert asyncio.run(pipeline.first_fit(round_of, finish, 70, 3)) == [{"n": n} for n in range(1, 30, 2)]


def test_a_majority():
    assert [pipeline.majority(votes) for votes in ([True], [True, False, False], [True, True, False], [])] == [
        True,
        False,
        True,
        False,
    ]


def test_a_spec_without_sections(write, document_source, cheese):
    """One without sections has no topic that rests on one: a line, not an endless loop."""
    with pytest.raises(BadInput, match="no usable topic"):
        write(document_source(), dataclasses.replace(cheese, sections=()))
