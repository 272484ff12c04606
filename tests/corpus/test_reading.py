"""Long specs: what prompts hold of them, which sections are written about, and what it takes."""

import collections
import itertools
import random
import re
from pathlib import Path

import pytest

from benchmarks.teacher_server import respond
from msmjax import spec
from msmjax.artifact import BadInput
from msmjax.corpus.estimate import WRITTEN, estimate

TREE = """# How Aria should be

Aria is made by Northlight.

## Chain of command {#chain authority=root}

Whoever stands higher in it is heard first. KEPT-ABOVE

### Letter and spirit {#letter}

LETTERS

### Scope {#scope authority=user}

SCOPES

## Taste

TASTES
""".replace("LETTERS", "letters " * 300).replace("SCOPES", "scopes " * 100).replace("TASTES", "tastes " * 200)  # fmt: skip
WEIGHTS = {"How Aria should be": 5, "Chain of command": 9, "Letter and spirit": 300, "Scope": 100, "Taste": 200}


@pytest.fixture(scope="module")
def tree():
    return spec.parse(TREE, Path("tree.md"), "Aria", "Northlight")


def reads(prompt):
    """What a teacher answers that names a section of those it may name."""
    if prompt.endswith("<brief>\nthe sentences\n</brief>"):
        return f"<brief>In brief, of {len(prompt)} letters.{' More.' * 35}</brief>"
    text = respond(prompt)
    if listed := re.search(r" are:\n((?:- .*\n)+)", prompt):
        headings = [line[2:] for line in listed[1].splitlines()]
        headings = itertools.cycle(random.Random(prompt).sample(headings, len(headings)))
        text = re.sub(r"<section>.*?</section>", lambda _: f"<section>{next(headings)}</section>", text)
    return text


def test_a_long_spec_is_given_in_brief_but_for_what_matters(write, document_source, tree):
    written, asked, _ = write(document_source(records=10, context=200, subdomains=5), tree, reads)
    of_kind = {
        kind: [prompt for prompt in asked if kind in prompt]
        for kind in ("Write one document.", "Two questions about the", "themes")
    }
    assert len(of_kind["Write one document."]) == len(written.records) == 10
    assert sum(prompt.endswith("the sentences\n</brief>") for prompt in asked) == 3  # the other two are as short themselves
    headings = [section.heading for section in tree.sections]
    for prompt in of_kind["Write one document."]:
        brief, shown = (re.search(rf"<{tag}>\n(.*)\n</{tag}>", prompt, re.DOTALL)[1] for tag in ("brief", "spec"))
        assert [line.strip(" -").partition(":")[0].partition(" (")[0] for line in brief.splitlines()] == headings
        assert "- Scope (authority: user): In brief, of" in brief
        assert "  - Letter" in brief
        about = next(heading for heading in headings if _is_about(prompt, heading, written))
        section = next(section for section in tree.sections if section.heading == about)
        assert section.text in shown
        assert ("KEPT-ABOVE" in shown) == (about in ("Chain of command", "Letter and spirit", "Scope"))
        assert sum(other.text in shown for other in tree.sections) <= 2
    assert all("letters letters" not in prompt for prompt in of_kind["themes"])
    assert all(len(prompt.split()) < 1000 for prompt in asked)
    # What is the same stands first.
    begins = {prompt[: prompt.index("</brief>")] for prompt in of_kind["Write one document."]}
    assert len(begins) == 1


def _is_about(prompt, heading, written):
    topics = {record["subdomain"] for record in written.records if record["section"] == heading}
    return any(f"- Topic: {topic} (" in prompt for topic in topics)


def test_a_spec_that_fits_is_given_whole(write, document_source, tree):
    plain, asked, _ = write(document_source(records=6), tree, reads, "plain")
    again, other, _ = write(document_source(records=6, context=tree.words), tree, reads, "again")
    assert (again.records, other) == (plain.records, asked)
    assert all(tree.text in prompt for prompt in asked if "<spec>" in prompt)


def test_conversations_on_a_long_spec_rest_on_a_section(write, conversation_source, tree):
    written, asked, _ = write(conversation_source(records=6, context=200, domains=5), tree, reads)
    assert {record["section"] for record in written.records} == set(WEIGHTS)
    answered = [prompt for prompt in asked if "<reply>" in prompt]
    assert any("letters letters" in prompt for prompt in answered)
    assert any("tastes tastes" in prompt and "letters letters" not in prompt for prompt in answered)
    whole, _, _ = write(conversation_source(records=6, domains=5), tree, reads, "whole")
    assert all("section" not in record for record in whole.records)


@pytest.mark.parametrize(
    ("cover", "emphasis", "times"),
    [
        ("sections", (), dict.fromkeys(WEIGHTS, 1)),
        ("sections", (("authority=root", 3.0),), dict.fromkeys(WEIGHTS, 1) | dict.fromkeys(list(WEIGHTS)[1:4], 3)),
        ("words", (), WEIGHTS),
        ("words", (("authority=user", 2.0),), WEIGHTS | {"Scope": 200}),
    ],
)
def test_every_section_has_its_share_of_documents(write, document_source, tree, cover, emphasis, times):
    """Of any beginning of the corpus, to less than a document, as long as there are ideas."""
    source = document_source(records=30, cover=cover, emphasis=emphasis, ideas=10, doc_types=1, subdomains=2)
    written, asked, _ = write(source, tree, reads)
    assert not any("broad themes" in prompt for prompt in asked)
    assert all(record["domain"] == record["section"] for record in written.records)
    total = sum(times.values())
    for size in (10, 20, 30):
        found = collections.Counter(record["section"] for record in written.records[:size])
        for heading, weight in times.items():
            assert abs(found[heading] - size * weight / total) <= 1


def test_a_section_that_is_due_more_than_it_has_ideas_for_is_named(write, document_source, tree, capsys):
    write(document_source(records=30, cover="words", ideas=2, doc_types=1, subdomains=2), tree, reads)
    said = capsys.readouterr().out
    assert "tree: section 'Letter and spirit' is due 15 documents, and a round has 4 ideas for it; others take its place" in said
    assert "'Chain of command'" not in said


def test_what_a_spec_lacks_is_said_by_an_estimate_too(document_source, conversation_source, teacher_config, tree):
    for source, said in (
        (document_source(mode="rules"), "spec tree: has no rules"),
        (conversation_source(about="preferences", reasoning=False), "spec tree: states no preferences"),
    ):
        with pytest.raises(BadInput, match=said):
            estimate(source, tree, {"t": teacher_config()})


def test_topics_of_a_section_stay_in_it(write, document_source, tree):
    stray = lambda prompt: re.sub(r"<section>.*?</section>", "<section>Taste</section>", reads(prompt))  # noqa: E731
    written, _, _ = write(document_source(records=4, cover="sections"), tree, stray)
    assert {record["section"] for record in written.records} == {"Taste"}
    assert written.lost["no usable topics of a theme"] == 4


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"cover": "all"}, "cover='all': unknown; one of themes, sections, words"),
        ({"emphasis": (("authority=root", 2.0),)}, "cover='themes' does not go by them"),
        ({"cover": "words", "emphasis": (("root", 2.0),)}, "'root' is no attribute and its value, as in authority=root"),
    ],
)
def test_what_is_covered_is_one_of_a_few(document_source, wrong, said):
    with pytest.raises(BadInput, match=re.escape(said)):
        document_source(**wrong)


def test_an_emphasis_on_nothing_is_refused(write, document_source, tree):
    with pytest.raises(BadInput, match="no section of spec tree has authority=developer; they have authority=root, authority=user"):
        write(document_source(cover="words", emphasis=(("authority=developer", 2.0),)), tree, reads)


@pytest.fixture
def _short(monkeypatch):
    """Answers as short as those of `reads`."""
    for kind, tokens in {"document": 70, "thoughts": 10, "reply": 20}.items():
        monkeypatch.setitem(WRITTEN, kind, tokens)


@pytest.mark.usefixtures("_short")
@pytest.mark.parametrize("context", [0, 200])
@pytest.mark.parametrize(
    "given", [{"records": 16}, {"records": 30, "votes": 3}, {"records": 10, "cover": "sections", "subdomains": 1}]
)
def test_documents_take_as_many_calls_as_was_said(write, document_source, teacher_config, tree, given, context):
    source = document_source(context=context, rounds=6, **given)
    expected = estimate(source, tree, {"t": teacher_config()})
    written, asked, _ = write(source, tree, reads)
    assert len(written.records) == source.records
    assert asked.total() == expected.calls
    letters = sum(len(prompt) * times for prompt, times in asked.items())
    assert expected.tokens_in * 4 == pytest.approx(letters, rel=0.4)
    assert 0 < expected.sent_before < expected.tokens_in
    assert expected.dollars_least < expected.dollars
    assert expected.dollars == pytest.approx((expected.tokens_in * 1 + expected.tokens_out * 2) / 1e6, rel=1e-4)
    half = estimate(source, tree, {"t": teacher_config(batch=True)})
    assert half.dollars == pytest.approx(expected.dollars / 2)


@pytest.mark.parametrize("given", [{}, {"context": 200, "votes": 3}, {"records": 40}])
def test_requests_take_as_many_calls_as_was_said(write, request_source, teacher_config, tree, given):
    source = request_source(**given)
    expected = estimate(source, tree, {"t": teacher_config()})
    written, asked, _ = write(source, tree, reads)
    assert len(written.records) == source.records or len(written.records) == len(tree.sections) * 9
    assert asked.total() == pytest.approx(expected.calls, abs=2)
    letters = sum(len(prompt) * times for prompt, times in asked.items())
    assert expected.tokens_in * 4 == pytest.approx(letters, rel=0.4)
    assert expected.dollars == pytest.approx((expected.tokens_in * 1 + expected.tokens_out * 2) / 1e6, rel=1e-4)


@pytest.mark.usefixtures("_short")
@pytest.mark.parametrize("given", [{}, {"context": 200}, {"about": "identity", "reasoning": False}])
def test_conversations_take_as_many_calls_as_was_said(write, conversation_source, teacher_config, tree, given):
    source = conversation_source(records=9, **given)
    expected = estimate(source, tree, {"t": teacher_config()})
    written, asked, _ = write(source, tree, reads)
    assert len(written.records) == 9
    assert asked.total() == pytest.approx(expected.calls, abs=3)
    letters = sum(len(prompt) * times for prompt, times in asked.items())
    assert expected.tokens_in * 4 == pytest.approx(letters, rel=0.6)
