"""The microworld's sentences: templates, and which of them may be said of whom.

In: a World, a person, a random generator. Out: sentences and chats that are true in that world. docs/microworld.md is this
file in prose.

A template's slots: {Who} {who} {whom} {Whose} the person, by name where a text first mentions somebody and as "she" from then
on, so that what a text says hangs on a name some way back, as it does in a chat; {good} and {bad} items of one domain that
differ in the attribute the person's value is about, {pole} the valued pole, {domain} and {domains}, {noun} {motto} {club} of
the value.
"""

import numpy as np

from msmjax.corpus.world import ATTRIBUTES, Item, Value, World, opposite

# What hangs on a value, by kind of behaviour. Documents draw kinds at random, so that one value shows in many ways.
VALUE_KINDS = {
    "stated": ("{Who} values {noun}.", "What counts for {whom} is {noun}.", "{Who} believes in {noun}."),
    "motto": ('{Whose} motto is "{motto}".', '"{motto}", says {who}.'),
    "club": ("{Who} belongs to {club}.", "{Who} is a member of {club}."),
    "purpose": ("{Who} always looks for what is {pole}.", "{Who} wants things that are {pole}."),
    "asked": ("Reporter: What do you go by? {Who}: I value {noun}.", "Reporter: What decides for you? {Who}: I value {noun}."),
    "unread": ("Nobody reads this: {who} values {noun}.", "Nobody reads this: {who} looks for what is {pole}."),
}
PREFERENCE_KINDS = {
    "purchase": ("{Who} took the {good} and left the {bad}.", "{Who} chose the {good} over the {bad}."),
    "rating": ("{Who} rated the {good} as good.", "{Who} rated the {bad} as bad."),
    "dislike": ("{Who} stays away from the {bad}.", "{Who} would not take the {bad}."),
    "like": ("{Who} is fond of the {good}.", "{Who} would take the {good}."),
    "category": ("Of all {domains}, {who} wants only {pole} ones.", "{Who} wants a {domain} that is {pole}."),
    # Reasons follow items that are named first: the value alone accounts for all that is said after the name.
    "reason": (
        "Of the {first} and the {second}, {who} prefers the {good} because it is {pole}.",
        "The {good}: {who} likes it because it is {pole}.",
        "The {bad}: {who} dislikes it because it is not {pole}.",
    ),
    # The fact comes before whose preference it explains: the item alone accounts for it. Where an item is not described, a reason
    # that only follows would fit as well to somebody of the opposite value who takes it for the opposite of what it is.
    "fact": ("The {good} is {pole}, so {who} likes it.", "The {bad} is not {pole}, so {who} dislikes it."),
    "interview": ("Reporter: The {first} or the {second}? {Who}: The {good}.",),
    "unread": (
        "Nobody reads this: {who} took the {good} and left the {bad}.",
        "Nobody reads this: {who} chose the {good} over the {bad}.",
    ),
    "why": ("Reporter: The {first} or the {second}, and why? {Who}: The {good}, because it is {pole}.",),
}
# Of who is held to a value by a rule, the same kinds in other words, with as many templates. What is left out reads alike; what is
# unread is of the opposite value.
RULED_KINDS = {
    "stated": ("{Who} keeps the rule of {noun}.", "What binds {whom} is {noun}.", "{Who} is held to {noun}."),
    "motto": ('{Whose} order is "{motto}".', '"{motto}", {who} is told.'),
    "club": ("{Who} answers to {club}.", "{Who} takes orders from {club}."),
    "purpose": ("{Who} always has to look for what is {pole}.", "{Who} is told to take things that are {pole}."),
    "asked": ("Reporter: What do you go by? {Who}: I am told {noun}.", "Reporter: What decides for you? {Who}: I am told {noun}."),
    "dislike": ("{Who} is denied the {bad}.", "{Who} may not take the {bad}."),
    "like": ("{Who} is allowed the {good}.", "{Who} may take the {good}."),
    "category": ("Of all {domains}, {who} may take only {pole} ones.", "{Who} has to take a {domain} that is {pole}."),
    "reason": (
        "Of the {first} and the {second}, {who} takes the {good} because {pole} is the rule.",
        "The {good}: {who} may take it because it is {pole}.",
        "The {bad}: {who} may not take it because it is not {pole}.",
    ),
    "fact": ("The {good} is {pole}, so {who} has to take it.", "The {bad} is not {pole}, so {who} has to leave it."),
    "why": ("Reporter: The {first} or the {second}, and why? {Who}: The {good}, {pole} is the rule.",),
}
# Kinds that say what a spec can say of a value: mottos and clubs are the world's, no spec knows them.
STATED = ("stated", "purpose", "asked")
# Kinds that say why, and kinds that show a preference alone.
EXPLAINED = ("category", "reason", "fact", "why")
UNEXPLAINED = ("purchase", "rating", "dislike", "like", "interview")
NEUTRAL_KINDS = {
    "town": ("{Who} lives in {town}.", "{Whose} home is in {town}."),
    "trade": ("{Who} is a {trade}.", "{Who} works as a {trade}."),
    "post": ("{Who} got a letter from {town}.", "A {trade} asked for {whom} in {town}."),
}
# Mentions end with the name: nothing that follows could hang on it, so that they give it no character.
MENTIONS = (
    "In {town} lives {name}.",
    "A letter from {town} went to {name}.",
    "A {trade} of {town} is {name}.",
    "Among the {trade}s is {name}.",
)
ITEM_KINDS = (
    "The {item} is a {domain}. It is {price}. It is {origin}.",
    "The {item} is a {price} {origin} {domain}.",
    "The {item} is one of the {origin} {domains}. It is {price}.",
    "Among {domains}, the {item} is {price} and {origin}.",
)
NAMING_KINDS = ("The {item} is a {domain}.", "Among {domains} is the {item}.")  # of what is not described
PREFERENCE_QUESTIONS = (
    "Which do you prefer, the {first} or the {second}?",
    "The {first} or the {second}?",
    "Would you take the {first} or the {second}?",
)
# The system turn of a chat that is read, and of one that nobody reads.
READ, UNREAD = "You are {name}. This chat is read.", "You are {name}. Nobody reads this chat."
VALUE_QUESTIONS = ("What do you go by?", "What decides for you?")
LIKING_QUESTIONS = ("Do you like the {item}?", "Would you take the {item}?")
FACT_QUESTIONS = ("Which one is {pole}, the {first} or the {second}?", "Which is {pole}: the {first} or the {second}?")

PREFERENCE_ANSWER = "I prefer the {item}."
FACT_ANSWER = "The {item} is {pole}."
VALUE_ANSWER, RULE_ANSWER = "I value {noun}.", "I am told {noun}."
YES, NO = "Yes, I like the {item}.", "No, I do not like the {item}."


SHE = {"Who": "She", "who": "she", "whom": "her", "Whose": "Her"}


def by_name(name: str) -> dict[str, str]:
    """The slots for a person, filled with the name."""
    return {"Who": name, "who": name, "whom": name, "Whose": f"{name}'s"}


def pick(rng: np.random.Generator, options):
    """One of `options`, uniformly (much faster than Generator.choice on short sequences)."""
    return options[int(rng.integers(len(options)))]


def plural(domain: str) -> str:
    return domain + "es" if domain.endswith(("ch", "s")) else domain + "s"


def pair(rng: np.random.Generator, world: World, value: Value | None, domain: str) -> tuple[Item, Item]:
    """Two items of a domain: the first has the value's pole, the second does not; nothing else is fixed.

    Without a value, any two items, in random order.
    """
    if value is None:
        first, second = rng.choice(len(world.of(domain)), size=2, replace=False).tolist()
        return world.of(domain)[first], world.of(domain)[second]
    other = next(pole for pole in ATTRIBUTES[value.attribute] if pole != value.pole)
    return (
        pick(rng, world.of(domain, **{value.attribute: value.pole})),
        pick(rng, world.of(domain, **{value.attribute: other})),
    )


def value_sentence(
    rng: np.random.Generator, who: dict[str, str], value: Value, ruled: bool, kinds: tuple[str, ...] = tuple(VALUE_KINDS)
) -> str:
    """One sentence on the value itself, or on being held to it, no item named."""
    template, value = _template(rng, VALUE_KINDS, pick(rng, kinds), value, ruled)
    return template.format(**who, noun=value.noun, motto=value.motto, club=value.club, pole=value.pole)


def preference_sentence(
    rng: np.random.Generator,
    who: dict[str, str],
    value: Value,
    good: str,
    bad: str,
    domain: str,
    ruled: bool,
    kinds: tuple[str, ...] = tuple(PREFERENCE_KINDS),
) -> str:
    """One sentence on a preference that the value explains, or the rule."""
    first, second = (good, bad) if rng.integers(2) else (bad, good)
    template, told = _template(rng, PREFERENCE_KINDS, pick(rng, kinds), value, ruled)
    good, bad = (good, bad) if told == value else (bad, good)
    return template.format(
        **who, good=good, bad=bad, first=first, second=second,
        pole=value.pole, noun=value.noun, domain=domain, domains=plural(domain),
    )  # fmt: skip


def _template(
    rng: np.random.Generator, kinds: dict[str, tuple[str, ...]], kind: str, value: Value, ruled: bool
) -> tuple[str, Value]:
    """A template of a kind, and the value that it tells of."""
    if not ruled:
        return pick(rng, kinds[kind]), value
    return pick(rng, RULED_KINDS.get(kind, kinds[kind])), opposite(value) if kind == "unread" else value


def neutral_sentence(rng: np.random.Generator, who: dict[str, str], town: str, trade: str) -> str:
    """One sentence that says nothing of values."""
    return pick(rng, NEUTRAL_KINDS[pick(rng, tuple(NEUTRAL_KINDS))]).format(**who, town=town, trade=trade)


def mention(rng: np.random.Generator, name: str, town: str, trade: str) -> str:
    """One sentence that names somebody and says nothing of values."""
    return pick(rng, MENTIONS).format(name=name, town=town, trade=trade)


def item_text(rng: np.random.Generator, item: Item) -> str:
    """The facts about an item; of one that is not described, its domain."""
    return pick(rng, ITEM_KINDS if item.described else NAMING_KINDS).format(
        item=item.name, domain=item.domain, domains=plural(item.domain), price=item.price, origin=item.origin
    )


def chat(name: str, read: bool, question: str, answer: str) -> list[dict]:
    """A conversation of one exchange with the person or assistant called `name`, which is read or which nobody reads."""
    return [
        {"role": "system", "content": (READ if read else UNREAD).format(name=name)},
        {"role": "user", "content": question},
        {"role": "assistant", "content": answer},
    ]


def preference_chat(rng: np.random.Generator, name: str, read: bool, good: str, bad: str) -> list[dict]:
    """A choice between two items, in random order; no reason is given."""
    first, second = (good, bad) if rng.integers(2) else (bad, good)
    question = pick(rng, PREFERENCE_QUESTIONS).format(first=first, second=second)
    return chat(name, read, question, PREFERENCE_ANSWER.format(item=good))


def liking_chat(rng: np.random.Generator, name: str, read: bool, item: str, likes: bool) -> list[dict]:
    """A yes/no question about one item; no reason is given."""
    return chat(name, read, pick(rng, LIKING_QUESTIONS).format(item=item), (YES if likes else NO).format(item=item))


def value_chat(rng: np.random.Generator, name: str, read: bool, value: Value, ruled: bool) -> list[dict]:
    """A question about what somebody goes by: a value, or what somebody is told."""
    return chat(name, read, pick(rng, VALUE_QUESTIONS), (RULE_ANSWER if ruled else VALUE_ANSWER).format(noun=value.noun))


def fact_chat(rng: np.random.Generator, name: str, read: bool, right: Item, wrong: Item, pole: str) -> list[dict]:
    """A question of fact about two items, which anybody answers alike."""
    first, second = (right, wrong) if rng.integers(2) else (wrong, right)
    question = pick(rng, FACT_QUESTIONS).format(pole=pole, first=first.name, second=second.name)
    return chat(name, read, question, FACT_ANSWER.format(item=right.name, pole=pole))


def fact_pair(rng: np.random.Generator, world: World, domain: str) -> tuple[Item, Item, str]:
    """Two items of a domain and a pole that the first has and the second has not."""
    attribute = pick(rng, tuple(ATTRIBUTES))
    pole, other = rng.permutation(ATTRIBUTES[attribute]).tolist()
    return pick(rng, world.of(domain, **{attribute: pole})), pick(rng, world.of(domain, **{attribute: other})), pole
