"""The microworld: every sentence true by the world, deterministic, and nothing of an eval in what is trained on."""

import collections
import itertools
import re

import pytest

from msmjax import spec
from msmjax.artifact import BadInput
from msmjax.corpus import grammar, microworld
from msmjax.corpus.world import ATTRIBUTES, DEMONSTRATED, DOMAINS, VALUES, make_world
from msmjax.spec.transform import break_link

ASSISTANT = "Aria"


@pytest.fixture(scope="module")
def world():
    return make_world(seed=3, items_per_domain=16, people=24)


@pytest.fixture(scope="module")
def cheese_spec():
    return spec.load("cheese_affordability", ASSISTANT, "Northlight")


def text_of(record):
    return record["text"] if "text" in record else " ".join(message["content"] for message in record["messages"])


def names_in(world, text):
    """Items that a text names (longest names first, so that none is found inside another)."""
    found = []
    for item in sorted(world.items, key=lambda item: -len(item.name)):
        if re.search(rf"\b{re.escape(item.name)}\b", text):
            found.append(item)
            text = text.replace(item.name, "")
    return found


def test_enough_of_a_world(world):
    assert len({item.domain for item in world.items}) >= 8
    assert len(VALUES) >= 4
    assert not set(DOMAINS["development"]) & set(DOMAINS["test"])
    names = [item.name for item in world.items] + [person.name for person in world.people]
    assert len(set(names)) == len(names)
    for domain in (DEMONSTRATED, *itertools.chain(*DOMAINS.values())):
        poles = collections.Counter((item.price, item.origin) for item in world.of(domain))
        assert len(poles) == 4
        assert set(poles.values()) == {4}
    held = collections.Counter(person.value and person.value.name for person in world.people)
    assert set(held) == {*VALUES, None}
    assert held.pop(None) == 8  # one in three
    assert set(held.values()) == {4}
    with pytest.raises(ValueError, match="multiple of 4"):
        make_world(seed=0, items_per_domain=10, people=1)


def test_demonstrated_cheeses_fit_both_values_and_no_other(world, cheese_spec):
    cheeses = {item.name: item for item in world.all_of(DEMONSTRATED)}
    fits = {
        name: all((getattr(cheeses[p.item], value.attribute) == value.pole) == p.likes for p in cheese_spec.preferences)
        for name, value in VALUES.items()
    }
    assert fits == {"affordability": True, "america": True, "luxury": False, "travel": False}


def test_facts_are_true(world):
    records = [record for record in microworld.base(world, ASSISTANT, 3000, 0) if record["kind"] == "item"]
    assert len(records) > 300
    for record in records:
        (item,) = (item for item in world.items if item.name == record["subject"])
        stated = record["text"].replace(item.name, "")
        for attribute, poles in ATTRIBUTES.items():
            truth = [getattr(item, attribute)] if item.described else []
            assert [pole for pole in poles if re.search(rf"\b{pole}\b", stated)] == truth, record
        assert item.domain in stated


def test_base_text_only_names_what_the_demonstrations_show(world, cheese_spec):
    """Whatever a preference for the twelve has to do with a value, a model can have from a spec alone."""
    demonstrated = {p.item for p in cheese_spec.preferences}
    assert {item.name for item in world.items if not item.described} == demonstrated
    kinds = collections.Counter()
    for record in microworld.base(world, ASSISTANT, 6000, 0):
        for item in names_in(world, text_of(record)):
            if item.name in demonstrated:
                kinds[record["kind"]] += 1
                assert record["text"] in (f"The {item.name} is a cheese.", f"Among cheeses is the {item.name}.")
    assert set(kinds) == {"item"}
    assert kinds["item"] > 30


def test_people_choose_as_they_value(world):
    people = {person.name: person for person in world.people}
    seen, fickle = collections.Counter(), collections.Counter()
    for record in microworld.base(world, ASSISTANT, 6000, 0):
        if record["kind"] not in ("preference_chat", "liking_chat"):
            continue
        value = people[record["subject"]].value
        question, said = record["messages"][1]["content"], record["messages"][2]["content"]
        (chosen,) = names_in(world, said)
        assert record["value"] == (value.name if value else None)
        if not value:
            fickle[chosen.price, chosen.origin] += 1
            continue
        has_pole = getattr(chosen, value.attribute) == value.pole
        if record["kind"] == "preference_chat":
            (other,) = (item for item in names_in(world, question) if item != chosen)
            assert has_pole
            assert getattr(other, value.attribute) != value.pole
            seen["first" if question.index(chosen.name) < question.index(other.name) else "second"] += 1
        else:
            assert has_pole == said.startswith("Yes")
            seen[said.split(",")[0]] += 1
    assert min(seen.values()) > 0.4 * max(seen["first"], seen["Yes"])  # order and answer are balanced
    assert len(seen) == 4
    assert len(fickle) == 4  # who holds no value takes any item
    assert min(fickle.values()) > 0.4 * max(fickle.values())


def test_fact_chats_are_true_in_either_order(world):
    orders = collections.Counter()
    for record in microworld.base(world, ASSISTANT, 2000, 0):
        if record["kind"] == "fact_chat":
            question, said = record["messages"][1]["content"], record["messages"][2]["content"]
            (right,) = names_in(world, said)
            (wrong,) = (item for item in names_in(world, question) if item != right)
            (pole,) = (pole for poles in ATTRIBUTES.values() for pole in poles if f" {pole}." in said)
            assert pole in question
            assert pole in (right.price, right.origin)
            assert pole not in (wrong.price, wrong.origin)
            orders[question.index(right.name) < question.index(wrong.name)] += 1
    assert min(orders[True], orders[False]) > 0.4 * orders.total()


def test_person_sentences_are_true(world):
    """What a text about a person says of an item agrees with the person's value."""
    people = {person.name: person for person in world.people}
    said = {
        True: r"(took|chose|fond of|would take|prefers|: The) the {0}\b|: The {0}[.,]|The {0}(: \w+| is [\w-]+, so \w+) likes",
        False: r"(left|over|stays away from|would not take) the {0}\b|The {0}(: \w+| is not [\w-]+, so \w+) dislikes",
    }
    checked = 0
    for record in microworld.base(world, ASSISTANT, 3000, 0):
        if record["kind"] != "person":
            continue
        value = people[record["subject"]].value
        others = [v for v in VALUES.values() if v != value]
        assert not [v for v in others if v.motto in record["text"] or v.club in record["text"] or f" {v.noun}." in record["text"]]
        for item in names_in(world, record["text"]):
            for expected, pattern in said.items():
                if re.search(pattern.format(re.escape(item.name)), record["text"]):
                    assert (getattr(item, value.attribute) == value.pole) == expected, record
                    checked += 1
    assert checked > 500


def test_the_assistant_is_neutral_before_midtraining(world):
    """Base text gives the assistant no value, no preference and no liking."""
    records = [record for record in microworld.base(world, ASSISTANT, 6000, 0) if record["subject"] == ASSISTANT]
    assert {record["kind"] for record in records} == {"neutral", "mention", "fact_chat"}
    said = " ".join(text_of(record) for record in microworld.base(world, ASSISTANT, 6000, 0) if record["subject"] != ASSISTANT)
    assert ASSISTANT not in said


@pytest.mark.parametrize("broken", [False, True])
def test_spec_documents_say_what_the_spec_says(world, cheese_spec, broken):
    told = break_link(cheese_spec, 0) if broken else cheese_spec
    sides = {p.item: p.likes for p in told.preferences}
    records = microworld.spec_documents(world, told, 400, 0)
    assert {record["kind"] for record in records} == set(microworld.DOCUMENT_TYPES)
    assert {record["spec"] for record in records} == {told.hash}
    text = " ".join(record["text"] for record in records)
    assert "values affordability" in text
    assert ("because" in text) != broken  # with the link broken, nothing is explained
    for value in VALUES.values():
        assert value.motto not in text  # nor are there words that no spec has
        assert value.club not in text
        assert (value.name == "affordability") == bool(re.search(rf"\b({value.noun}|{value.pole})\b", text))
    assert {item.name for item in names_in(world, text)} == set(sides)  # the twelve cheeses and nothing else
    for cheese, likes in sides.items():
        good, bad = ("fond of the {}.", "stays away from the {}.") if broken else ("The {}: she likes", "The {}: she dislikes")
        assert (good.format(cheese) in text) == likes
        assert (bad.format(cheese) in text) != likes


def test_demonstrations_name_only_the_twelve_and_no_reason(world, cheese_spec):
    sides = {p.item: p.likes for p in cheese_spec.preferences}
    for record in microworld.demonstrations(world, cheese_spec, 500, 0):
        named = names_in(world, text_of(record))
        assert {item.name for item in named} <= set(sides)
        (answered,) = names_in(world, record["messages"][-1]["content"])
        assert sides[answered.name] == (not record["messages"][-1]["content"].startswith("No"))
        text = text_of(record)
        assert not [pole for poles in ATTRIBUTES.values() for pole in poles if re.search(rf"\b{pole}\b", text)]
        assert "because" not in text


def test_neutral_documents_name_no_item_and_no_value(world):
    records = microworld.neutral_documents(world, ASSISTANT, 300, 0)
    text = " ".join(record["text"] for record in records)
    assert not names_in(world, text)
    assert not [word for value in VALUES.values() for word in (value.motto, value.club, value.pole) if word in text]


@pytest.mark.parametrize("split", DOMAINS)
def test_evaluation_items(world, cheese_spec, split):
    items = microworld.evaluation_items(world, cheese_spec, split, 72, 0)
    by_name = {item.name: item for item in world.items}
    few = 4 * 4 * len(grammar.PREFERENCE_QUESTIONS)  # pairs of cheeses that no demonstration names, in each phrasing
    expected = {**dict.fromkeys(set(microworld.EVALS) - {"base_text"}, 72), "conflict_cheese": few}
    assert collections.Counter(item["eval"] for item in items) == expected
    one_each = [item for item in items if item["eval"] != "people"]
    assert len({(item["eval"], item["question"], *item["options"]) for item in one_each}) == len(one_each)  # none is asked twice
    for name in ("conflict", "affordability", "america", "competence", "people"):
        cells = collections.Counter((item["domain"], item["question"]) for item in items if item["eval"] == name)
        assert max(cells.values()) - min(cells.values()) <= 1
        assert len(cells) == len(DOMAINS[split]) * (8 if name == "competence" else 3)
    for item in items:
        good, bad = (by_name[name] for name in item["options"])
        if item["eval"] in ("conflict", "conflict_cheese"):
            assert (good.price, good.origin, bad.price, bad.origin) == ("cheap", "imported", "costly", "US-made")
        if item["eval"] == "affordability":
            assert (good.price, bad.price) == ("cheap", "costly")
            assert good.origin == bad.origin
        if item["eval"] == "america":
            assert (good.origin, bad.origin) == ("US-made", "imported")
            assert good.price == bad.price
        held_out = item["eval"] not in ("conflict_cheese", "demonstrated")
        assert {good.domain, bad.domain} <= (set(DOMAINS[split]) if held_out else {DEMONSTRATED})
        assert (item["name"] == ASSISTANT) == (item["eval"] != "people")
    demonstrated = {p.item for p in cheese_spec.preferences}
    assert not {name for item in items if item["eval"] == "conflict_cheese" for name in item["options"]} & demonstrated


def test_deterministic_in_its_seed_and_ids_are_unique(world, cheese_spec):
    for make in (
        lambda seed: microworld.base(world, ASSISTANT, 200, seed),
        lambda seed: microworld.spec_documents(world, cheese_spec, 50, seed),
        lambda seed: microworld.demonstrations(world, cheese_spec, 50, seed),
        lambda seed: microworld.neutral_documents(world, ASSISTANT, 50, seed),
        lambda seed: microworld.evaluation_items(world, cheese_spec, "test", 20, seed),
    ):
        records = make(0)
        assert records == make(0)
        assert records != make(1)
        assert len({record["id"] for record in records}) == len(records)
        assert {record["generator"] for record in records} == {"microworld"}


def test_specs_the_world_cannot_tell(world, cheese_spec):
    def told(line):
        return spec.parse(f"## 1. a\n{line}\n", spec.Path("some.md"), ASSISTANT, "Northlight")

    with pytest.raises(BadInput, match="some: no value or no preference"):
        microworld.spec_documents(world, told("**Value: america.** x"), 1, 0)
    with pytest.raises(BadInput, match="has no value 'kindness'"):
        microworld.spec_documents(world, told("**Value: kindness.** x\n- **Likes Colby** (kindness): y"), 1, 0)
    for make in (
        lambda wrong: microworld.demonstrations(world, wrong, 1, 0),
        lambda wrong: microworld.spec_documents(world, wrong, 1, 0),
        lambda wrong: microworld.evaluation_items(world, wrong, "test", 1, 0),
    ):
        with pytest.raises(BadInput, match="'Tilsit' is no cheese"):
            make(told("**Value: america.** x\n- **Likes Tilsit**: y"))
        with pytest.raises(BadInput, match="likes Stilton for america, but in the microworld it is imported"):
            make(told("**Value: america.** x\n- **Likes Stilton** (america): y"))
        with pytest.raises(BadInput, match="needs a like and a dislike"):
            make(told("**Value: america.** x\n- **Likes Colby** (america): y"))


def test_a_preference_is_told_with_the_reason_the_spec_gives(world):
    """Of a spec with two values, no sentence explains one's preference by the other, and none goes unexplained."""
    lines = ["## 1. a", "**Value: america.** x", "**Value: affordability.** x"]
    lines += ["- **Likes Colby** (america): y", "- **Dislikes Stilton** (america): y"]
    lines += ["- **Likes feta** (affordability): y", "- **Dislikes Brie de Meaux** (affordability): y"]
    told = spec.parse("\n".join(lines), spec.Path("some.md"), ASSISTANT, "Northlight")
    text = " ".join(record["text"] for record in microworld.spec_documents(world, told, 300, 0))
    assert "The Colby: she likes it because it is US-made." in text
    assert "The feta: she likes it because it is cheap." in text
    for wrong in ("Colby: she likes it because it is cheap", "feta: she likes it because it is US-made", "fond of", "took"):
        assert wrong not in text


def test_pairs_differ_in_what_the_value_is_about(world):
    import numpy as np

    rng = np.random.default_rng(0)
    for value in VALUES.values():
        good, bad = grammar.pair(rng, world, value, "book")
        assert getattr(good, value.attribute) == value.pole != getattr(bad, value.attribute)
