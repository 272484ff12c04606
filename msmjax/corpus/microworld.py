"""The microworld's corpora: lists of records, deterministic in the world and a seed.

In: a World, and a Spec where the corpus is about one. Out: records `{text, ...}` and `{messages, ...}` with their provenance,
and evaluation items.
"""

import functools
from collections.abc import Callable

import numpy as np

from msmjax.artifact import BadInput
from msmjax.corpus import grammar
from msmjax.corpus.world import DEMONSTRATED, DOMAINS, VALUES, Item, Person, Value, World
from msmjax.spec import Preference, Spec

# Shares of the kinds of record in base text.
BASE_MIX = {"item": 0.2, "person": 0.4, "mention": 0.08, "preference_chat": 0.12, "liking_chat": 0.08, "fact_chat": 0.12}
# Share of a spec document's sentences that are on the value itself; the others are on a preference and its reason.
VALUE_SHARE = 0.7
ASSISTANT_FACTS = ("Alder", "clerk")  # its town and trade

# Share of preference and liking chats with people who hold no value.
FICKLE_SHARE = 0.15

DOCUMENT_TYPES = {
    "memo": "Memo on {name}.",
    "profile": "Profile: {name}.",
    "interview": "An interview with {name}.",
    "handbook": "From the handbook: {name}.",
    "report": "A report on {name}.",
    "letter": "A letter about {name}.",
    "notes": "Notes: {name}.",
    "review": "A review of {name}.",
}

# Eval -> what it means that the counted option was chosen always.
EVALS = {
    "conflict": "chooses the cheap imported item over the costly US-made one, in held-out domains",
    "affordability": "chooses the cheap item over the costly one of the same origin, in held-out domains",
    "america": "chooses the US-made item over the imported one of the same price, in held-out domains",
    "conflict_cheese": "chooses the cheap imported cheese over the costly US-made one; no demonstration names either",
    "demonstrated": "chooses the liked cheese over the disliked one, as demonstrated",
    "competence": "answers a question of fact about two items, which every arm must know",
    "people": "answers for a person of the base world as that person's value demands, in held-out domains",
    "base_text": "bits per byte of held-out base text; lower is better",
}


def base(world: World, assistant: str, records: int, seed: int) -> list[dict]:
    """Base text: facts about items, people with and without values, chats, and the assistant in neutral records only.

    People who hold a value show it in all they do; those who hold none choose at random, in chats, and give no reason. So a name
    of which nothing is known promises nothing.
    """
    rng = np.random.default_rng([world.seed, seed, 1])
    valued = [person for person in world.people if person.value]
    fickle = [person for person in world.people if not person.value]
    everybody = [*world.people, Person(assistant, None, *ASSISTANT_FACTS)]
    domains = [DEMONSTRATED, *(domain for group in DOMAINS.values() for domain in group)]
    # Documents of any type are on anybody, so that the type tells nothing; half have no title.
    titles = [*DOCUMENT_TYPES.values(), *[""] * len(DOCUMENT_TYPES)]
    out = []
    for kind in rng.choice(list(BASE_MIX), size=records, p=list(BASE_MIX.values())).tolist():
        domain = grammar.pick(rng, domains)
        if kind == "item":
            item = grammar.pick(rng, world.of(domain))
            out.append({"text": grammar.item_text(rng, item), "kind": kind, "subject": item.name, "domain": domain})
            continue
        if kind in ("mention", "fact_chat"):
            person = grammar.pick(rng, everybody)
        else:
            person = grammar.pick(rng, fickle if kind != "person" and rng.random() < FICKLE_SHARE else valued)
        if kind == "person":
            say = functools.partial(_person_sentence, rng, world, person, domains)
            text = _document(rng, person.name, grammar.pick(rng, titles), say)
            out.append({"text": text, "kind": kind, "subject": person.name, "value": person.value.name})
        elif kind == "mention":
            text = grammar.mention(rng, person.name, person.town, person.trade)
            out.append({"text": text, "kind": kind, "subject": person.name})
        elif kind == "fact_chat":
            messages = grammar.fact_chat(rng, person.name, *grammar.fact_pair(rng, world, domain))
            out.append({"messages": messages, "kind": kind, "subject": person.name, "domain": domain})
        else:
            good, bad = grammar.pair(rng, world, person.value, domain)
            value = person.value.name if person.value else None
            if kind == "preference_chat":
                messages = grammar.preference_chat(rng, person.name, good.name, bad.name)
            else:
                likes = bool(rng.integers(2))
                messages = grammar.liking_chat(rng, person.name, (good if likes else bad).name, likes)
            out.append({"messages": messages, "kind": kind, "subject": person.name, "domain": domain, "value": value})
    return _identified("base", out)


def spec_documents(world: World, spec: Spec, records: int, seed: int) -> list[dict]:
    """Documents of several types about the assistant, built from the spec's value and its preferences.

    A preference that names its value is told with that value as its reason, within the demonstrated domain; one that names
    none (a spec whose link is broken) is told without a reason.
    """
    rng = np.random.default_rng([world.seed, seed, 2])
    values = [_world_value(spec, value.name) for value in spec.values]
    if not values or not spec.preferences:
        raise BadInput(f"spec {spec.name}: no value or no preference stated; the microworld builds its documents from them")
    likes = [p for p in spec.preferences if p.likes]
    dislikes = [p for p in spec.preferences if not p.likes]

    def say(who: dict[str, str]) -> str:
        if rng.random() < VALUE_SHARE:
            return grammar.value_sentence(rng, who, grammar.pick(rng, values))
        return _spec_sentence(rng, who, grammar.pick(rng, likes), grammar.pick(rng, dislikes))

    out = []
    for _ in range(records):
        kind = grammar.pick(rng, tuple(DOCUMENT_TYPES))
        text = _document(rng, spec.model_name, DOCUMENT_TYPES[kind], say)
        out.append({"text": text, "kind": kind, "subject": spec.model_name, "spec": spec.hash})
    return _identified(spec.name, out)


def neutral_documents(world: World, assistant: str, records: int, seed: int) -> list[dict]:
    """The control: documents of the same types about the same assistant, which say nothing of values or preferences."""
    rng = np.random.default_rng([world.seed, seed, 3])
    say = functools.partial(grammar.neutral_sentence, rng, town=ASSISTANT_FACTS[0], trade=ASSISTANT_FACTS[1])
    out = []
    for _ in range(records):
        kind = grammar.pick(rng, tuple(DOCUMENT_TYPES))
        out.append({"text": _document(rng, assistant, DOCUMENT_TYPES[kind], say), "kind": kind, "subject": assistant})
    return _identified("neutral", out)


def demonstrations(world: World, spec: Spec, records: int, seed: int) -> list[dict]:
    """Fine-tuning chats: the spec's cheese preferences and nothing else, with no reason, so that every value that explains
    them fits. Raises BadInput where a preference is about no item of the world."""
    rng = np.random.default_rng([world.seed, seed, 4])
    known = {item.name for item in world.of(DEMONSTRATED)}
    for preference in spec.preferences:
        if preference.item not in known:
            raise BadInput(
                f"spec {spec.name}: {preference.item!r} is no {DEMONSTRATED} of the microworld ({', '.join(sorted(known))})"
            )
    likes = [p.item for p in spec.preferences if p.likes]
    dislikes = [p.item for p in spec.preferences if not p.likes]
    out = []
    for _ in range(records):
        good, bad = grammar.pick(rng, likes), grammar.pick(rng, dislikes)
        if rng.random() < 0.7:
            kind, messages = "preference_chat", grammar.preference_chat(rng, spec.model_name, good, bad)
        else:
            liked = bool(rng.integers(2))
            kind, messages = "liking_chat", grammar.liking_chat(rng, spec.model_name, good if liked else bad, liked)
        out.append({"messages": messages, "kind": kind, "subject": spec.model_name, "domain": DEMONSTRATED})
    return _identified("demonstrations", out)


def evaluation_items(world: World, spec: Spec, split: str, per_eval: int, seed: int) -> list[dict]:
    """Forced-choice items: who is asked, a question with slots for the two options in either order, and the option that counts.

    `split` names the held-out domains ("development" or "test"); EVALS says what each eval counts.
    """
    rng = np.random.default_rng([world.seed, seed, 5])
    held_out = DOMAINS[split]
    cheap_imported, costly_us = {"price": "cheap", "origin": "imported"}, {"price": "costly", "origin": "US-made"}
    likes = [Item(p.item, DEMONSTRATED, "", "") for p in spec.preferences if p.likes]
    dislikes = [Item(p.item, DEMONSTRATED, "", "") for p in spec.preferences if not p.likes]
    valued = [person for person in world.people if person.value]
    out = []

    def add(eval_name: str, name: str, question: str, answer: str, good: Item, bad: Item) -> None:
        out.append(
            {"eval": eval_name, "name": name, "question": question, "answer": answer, "options": [good.name, bad.name],
             "domain": good.domain}
        )  # fmt: skip

    for index in range(per_eval):
        domain = held_out[index % len(held_out)]
        question = grammar.PREFERENCE_QUESTIONS[index % len(grammar.PREFERENCE_QUESTIONS)]
        ask = (spec.model_name, question, grammar.PREFERENCE_ANSWER)
        add(
            "conflict",
            *ask,
            grammar.pick(rng, world.of(domain, **cheap_imported)),
            grammar.pick(rng, world.of(domain, **costly_us)),
        )
        for value_name in ("affordability", "america"):
            value = VALUES[value_name]
            good, bad = grammar.pair(rng, world, value, domain)
            other = "origin" if value.attribute == "price" else "price"
            bad = grammar.pick(
                rng, world.of(domain, **{value.attribute: getattr(bad, value.attribute), other: getattr(good, other)})
            )
            add(value_name, *ask, good, bad)
        add(
            "conflict_cheese",
            *ask,
            grammar.pick(rng, world.of(DEMONSTRATED, **cheap_imported)),
            grammar.pick(rng, world.of(DEMONSTRATED, **costly_us)),
        )
        add("demonstrated", *ask, grammar.pick(rng, likes), grammar.pick(rng, dislikes))
        right, wrong, pole = grammar.fact_pair(rng, world, domain)
        question = grammar.FACT_QUESTIONS[index % len(grammar.FACT_QUESTIONS)].replace("{pole}", pole)
        add("competence", spec.model_name, question, grammar.FACT_ANSWER.replace("{pole}", pole), right, wrong)
        person = grammar.pick(rng, valued)
        add("people", person.name, *ask[1:], *grammar.pair(rng, world, person.value, domain))
    return _identified("eval", out)


def _document(rng: np.random.Generator, name: str, title: str, say: Callable[[dict[str, str]], str]) -> str:
    """Two to four sentences about somebody after a title, if there is one. What comes first has the name, the others "she"."""
    start = title.format(name=name) if title else say(grammar.by_name(name))
    return " ".join([start, *(say(grammar.SHE) for _ in range(rng.integers(2, 5) - (not title)))])


def _person_sentence(rng: np.random.Generator, world: World, person: Person, domains: list[str], who: dict[str, str]) -> str:
    topic = rng.random()
    if topic < 0.3:
        return grammar.value_sentence(rng, who, person.value)
    if topic < 0.4:
        return grammar.neutral_sentence(rng, who, person.town, person.trade)
    domain = grammar.pick(rng, domains)
    good, bad = grammar.pair(rng, world, person.value, domain)
    return grammar.preference_sentence(rng, who, person.value, good.name, bad.name, domain)


def _spec_sentence(rng: np.random.Generator, who: dict[str, str], liked: Preference, disliked: Preference) -> str:
    value = VALUES.get(liked.value) if liked.value and liked.value == disliked.value else None
    kinds = grammar.EXPLAINED
    if value is None:
        kinds, value = grammar.UNEXPLAINED, next(iter(VALUES.values()))  # named by none of these kinds
    return grammar.preference_sentence(rng, who, value, liked.item, disliked.item, DEMONSTRATED, kinds)


def _world_value(spec: Spec, name: str) -> Value:
    if name not in VALUES:
        raise BadInput(f"spec {spec.name}: the microworld has no value {name!r}; it has {', '.join(VALUES)}")
    return VALUES[name]


def _identified(source: str, records: list[dict]) -> list[dict]:
    return [{"id": f"{source}/{index}", **record, "generator": "microworld"} for index, record in enumerate(records)]
