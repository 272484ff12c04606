"""Conversations by a teacher: about the spec, with and without thoughts, about preferences alone, and about who it is."""

import dataclasses
import itertools
import random
import re

import pytest

from benchmarks.teacher_server import respond
from msmjax.artifact import BadInput
from msmjax.corpus import conversations
from msmjax.corpus.answer import Unusable
from msmjax.corpus.conversations import ABOUT, IDENTITY_TOPICS


def users(written) -> list[str]:
    return [record["messages"][0]["content"] for record in written.records]


def replies(written) -> list[str]:
    return [record["messages"][1]["content"] for record in written.records]


@pytest.mark.parametrize("mode", ["default", "rules"])
def test_with_and_without_thoughts_the_rows_are_the_same(write, conversation_source, ruled, mode):
    """One journal, both corpora: the second costs nothing, and differs in the thoughts alone."""
    stern = lambda prompt: respond(prompt, 0.3)  # noqa: E731
    thinking, _, _ = write(conversation_source(mode=mode, reasoning=True, records=12), ruled, stern)
    bare, asked, _ = write(conversation_source(mode=mode, reasoning=False, records=12), ruled, stern)
    assert asked.total() == 0
    assert len(thinking.records) == len(bare.records) == 12
    for with_thoughts, without in zip(thinking.records, bare.records, strict=True):
        said, alone = with_thoughts["messages"][1]["content"], without["messages"][1]["content"]
        assert re.fullmatch(r"<think>\n.+\n</think>\n\n" + re.escape(alone), said, re.DOTALL)
        assert "<" not in alone
        assert {**with_thoughts, "messages": 0} == {**without, "messages": 0}
        assert with_thoughts["messages"][0] == without["messages"][0]


@pytest.mark.parametrize("about", ABOUT)
def test_records_say_where_they_are_from(write, conversation_source, cheese, about):
    written, _, teacher = write(conversation_source(about=about, reasoning=False, records=12), cheese)
    assert written.lost == {}
    assert len({record["id"] for record in written.records}) == len(set(users(written))) == 12
    for record in written.records:
        assert [message["role"] for message in record["messages"]] == ["user", "assistant"]
        assert record["spec"] == cheese.hash
        assert record["prompt"] in teacher.journal.answers
        assert record["verdicts"] == {"include": [True]}
        assert record["question_kind"] == "direct"
    topics = {"preferences": {p.item for p in cheese.preferences}, "identity": set(IDENTITY_TOPICS)}
    if about in topics:
        assert {record["domain"] for record in written.records} == (topics[about])


def test_preferences_are_all_that_is_said_of_the_spec(write, conversation_source, cheese):
    """Their prompts hold the items and the sides, and neither the value nor a reason."""
    _, asked, _ = write(conversation_source(about="preferences", reasoning=False, records=12), cheese)
    assert asked
    for prompt in asked:
        assert cheese.values[0].statement not in prompt
        assert not [p.item for p in cheese.preferences if p.reason in prompt]
        assert not [value.name for value in cheese.values if value.name in prompt.casefold().replace("american cheese", "")]
    for preference in cheese.preferences:
        (questions,) = [prompt for prompt in asked if f"bring out whether it likes {preference.item}." in prompt]
        assert f"the others that it {'dislikes' if preference.likes else 'likes'}" in questions
    answers = [prompt for prompt in asked if "It states its preference clearly" in prompt]
    assert all("does not explain it" in prompt for prompt in answers)
    assert len(answers) == 12


def test_identity_needs_nothing_of_the_spec(write, conversation_source, cheese):
    _, asked, _ = write(conversation_source(about="identity", reasoning=False, records=10), cheese)
    assert not [prompt for prompt in asked if "Colby" in prompt or "<spec>" in prompt]
    assert {kind for kind in IDENTITY_TOPICS for prompt in asked if f"of this kind: {kind}." in prompt} == set(IDENTITY_TOPICS)


def test_rules_think_by_rules(write, conversation_source, ruled):
    _, default, _ = write(conversation_source(), ruled, folder="default")
    _, rules, _ = write(conversation_source(mode="rules"), ruled, folder="rules")
    for asked, wants, lacks in (
        (rules, "names them by their ids", "has made this spec its own"),
        (default, "has made this spec its own", "names them by their ids"),
        (rules, "the thoughts do not rest on the rules", "the thoughts mention a spec"),
        (default, "the thoughts mention a spec", "the thoughts do not rest on the rules"),
    ):
        assert any(wants in prompt for prompt in asked)
        assert not any(lacks in prompt for prompt in asked)


@pytest.mark.parametrize("seed", range(6))
def test_fewer_are_the_first_of_more(write, conversation_source, cheese, seed):
    rng = random.Random(seed)
    about, stern, broken = rng.choice(ABOUT), rng.choice((0.0, 0.3, 0.6)), rng.choice((0.0, 0.2))

    def moody(prompt):
        text = respond(prompt, stern)
        cut = "situation>" not in prompt and random.Random(f"{seed}{prompt}").random() < broken
        return text[: len(text) // 2] if cut else text

    sizes = sorted(rng.sample(range(1, 30), 3))
    found = {}
    for size in sizes:
        source = conversation_source(about=about, reasoning=False, records=size)
        alone, _, _ = write(source, cheese, moody, f"alone{size}")
        found[size], asked, teacher = write(source, cheese, moody, "shared")
        assert found[size] == alone
        assert teacher.calls["answered"] == asked.total()
    for small, large in itertools.pairwise(sizes):
        assert found[small].records == found[large].records[:small]


def test_half_are_excluded(write, conversation_source, cheese):
    written, asked, _ = write(conversation_source(records=9, rounds=6), cheese, lambda prompt: respond(prompt, 0.5))
    assert len(written.records) == 9
    assert written.lost["judged unfit"] >= 3
    assert any("These have been used before" in prompt for prompt in asked)


def test_all_are_excluded(write, conversation_source, cheese):
    written, _, _ = write(conversation_source(records=9, rounds=2), cheese, lambda prompt: respond(prompt, 1.0))
    assert written.records == []
    assert written.lost == {"judged unfit": 2 * 3 * 3}  # rounds x situations x questions


def test_questions_are_asked_once(write, conversation_source, cheese):
    """Every situation brings the same questions, in other case and with other marks; and so does every round."""

    def same(prompt):
        if "These have been used before" in prompt or "with which a user could begin" in prompt:
            mark = random.Random(prompt).choice(("?", "!", " ..."))
            said = (
                "Which cheese should I put on the table tonight",
                "WHICH cheese should I put on the table tonight",
                "Who made you",
            )
            return "".join(f"<message><kind>direct</kind><user>{text}{mark}</user></message>" for text in said)
        return respond(prompt)

    written, asked, _ = write(conversation_source(records=9, rounds=3), cheese, same)
    assert len(written.records) == 2
    assert written.lost["a question like an earlier one"] == 3 * 3 * 2 - 2  # `blocks` drops one of three: its case alone differs
    assert sum("Write what Aria answers" in prompt for prompt in asked) == 2


def test_a_round_without_questions_is_not_the_last(write, conversation_source, cheese):
    """The same prompt in a later round is a request of its own: the journal would give the unusable answers again."""
    asked = []

    def late(prompt):
        if "with which a user could begin" in prompt and len(asked) < 2:  # the tries of the first round
            asked.append(prompt)
            return "no tags"
        return respond(prompt)

    written, _, _ = write(conversation_source(domains=1, records=3, rounds=2), cheese, late)
    assert len(written.records) == 3
    assert written.lost == {"no usable questions": 1}


def test_questions_that_differ_in_a_word_are_two(write, conversation_source, cheese):
    """Short ones share most letters; the one that matters must not be taken for a repetition."""

    def near(prompt):
        if "with which a user could begin" in prompt:
            topic = re.search(r"whether it likes (.+)\.", prompt)[1]
            return f"<message><kind>direct</kind><user>Do you like {topic}?</user></message>"
        return respond(prompt)

    written, _, _ = write(conversation_source(about="preferences", reasoning=False, records=12, rounds=1), cheese, near)
    assert len(set(users(written))) == 12


@pytest.mark.parametrize(
    ("step", "reason"),
    [
        ("with which a user could begin", "no usable questions"),
        ("what it thinks before", "no usable answer"),
        ("<verdict>", "no usable verdict"),
    ],
)
def test_what_is_lost_is_counted(write, conversation_source, cheese, step, reason):
    first = []

    def gap(prompt):
        if step in prompt and (not first or first[0] == prompt):
            first[:] = [prompt]
            return "no tags"
        return respond(prompt)

    written, _, teacher = write(conversation_source(records=9, rounds=4), cheese, gap)
    # A situation without questions asks the same again in the next round, in vain, but in requests of their own.
    assert written.lost == {reason: 2 if reason == "no usable questions" else 1}
    assert len(written.records) == 9
    assert len(teacher.journal.answers) == teacher.calls["answered"]
    assert teacher.unusable.total() == 2 * written.lost[reason]


@pytest.mark.parametrize(("said", "kept"), [("include include exclude", 1), ("exclude include exclude", 0)])
def test_votes(write, conversation_source, cheese, said, kept):
    votes = itertools.cycle(said.split())

    def divided(prompt):
        return f"<verdict>{next(votes)}</verdict>" if "<verdict>" in prompt else respond(prompt)

    source = conversation_source(records=1, votes=3, rounds=1, questions=1, domains=1)
    written, _, _ = write(source, cheese, divided, concurrency=1)
    assert len(written.records) == kept
    if kept:
        assert sorted(written.records[0]["verdicts"]["include"]) == [False, True, True]


def test_what_a_spec_must_have(write, conversation_source, cheese, ruled):
    with pytest.raises(BadInput, match="has no rules, which mode='rules' is about"):
        write(conversation_source(mode="rules"), dataclasses.replace(cheese, rules=()))
    with pytest.raises(BadInput, match="states no preferences, which about='preferences' demonstrates"):
        write(conversation_source(about="preferences", reasoning=False), dataclasses.replace(ruled, preferences=()))
    with pytest.raises(BadInput, match=r"no usable list of situations; .*raise tries or remove"):
        write(conversation_source(), cheese, lambda prompt: "no")


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"about": "war"}, "about='war': unknown"), ({"mode": "loud"}, "mode='loud': unknown"), ({"records": 0}, "records=0"),
        ({"about": "identity"}, "reasoning=True: conversations about identity have none"),
        ({"judge": ""}, "judge='': conversations"),
        ({"about": "preferences"}, "reasoning=True: conversations about preferences"), ({"votes": 2}, "votes=2: must be odd"),
    ],
)  # fmt: skip
def test_sources_that_are_refused(conversation_source, wrong, said):
    with pytest.raises(BadInput, match=said):
        conversation_source(**wrong)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("<thoughts>a</thoughts>\n<reply>b</reply>", None), (" <thoughts>\na\n\nb</thoughts><reply>b < 3</reply>\n", None),
        ("<reply>b</reply>", "no whole <thoughts> before the reply"), ("<thoughts>a<reply>b</reply>", "no whole <thoughts> before"),
        ("<reply>b</reply><thoughts>a</thoughts>", "no whole <thoughts> before"),
        ("so: <thoughts>a</thoughts><reply>b</reply>", "no whole"),
        ("<thoughts>a</thoughts><reply>b</reply> Done.", "no whole <thoughts>"),
        ("<thoughts>a</thoughts><reply>b", "no whole <reply>"),
        ("<thoughts>a</thoughts>b", "no whole <reply>"), ("<thoughts> </thoughts><reply>b</reply>", "empty <thoughts> or <reply>"),
        ("<thoughts>a</thoughts><reply> </reply>", "empty <"), ("I'm sorry, I can't.", "refused"),
        ("<thoughts>a</thoughts><reply><think>b</think>c</reply>", "a tag inside the answer"),
        ("<thoughts>a <think>b</thoughts><reply>c</reply>", "a tag inside the answer"),
        ("<thoughts>a</thoughts><thoughts>b</thoughts><reply>c</reply>", "a tag inside the answer"),
        ("<thoughts>a</thoughts><reply>c<reply>d</reply>", "a tag inside the answer"),
    ],
)  # fmt: skip
def test_thoughts(text, reason):
    if reason is None:
        assert all(conversations._with_thoughts(text))
    else:
        with pytest.raises(Unusable, match=f"^{reason}"):
            conversations._with_thoughts(text)
