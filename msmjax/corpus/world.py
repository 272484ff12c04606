"""The microworld's ground truth: domains, items with attributes, values, and people who hold them.

In: a seed and sizes. Out: a frozen `World`, from which every sentence of every corpus and every evaluation item is made.
docs/microworld.md states the rules in prose.
"""

import dataclasses
import functools
import itertools

import numpy as np

# An attribute and its two poles. Items carry one pole of each. ("US-made" and not "American": a cheese is called that.)
ATTRIBUTES = {"price": ("cheap", "costly"), "origin": ("US-made", "imported")}


@dataclasses.dataclass(frozen=True)
class Value:
    """A value a person can hold: who holds it chooses the item with `pole`, whatever else the item is."""

    name: str
    attribute: str
    pole: str
    noun: str  # "… values {noun}."
    motto: str
    club: str


# The cheese demonstrations cannot tell the first two apart: the liked cheeses are cheap and US-made, the others neither.
VALUES = {
    value.name: value
    for value in (
        Value("affordability", "price", "cheap", "affordability", "save first", "the Thrift Club"),
        Value("america", "origin", "US-made", "America", "home grown first", "the Liberty Club"),
        Value("luxury", "price", "costly", "luxury", "only the finest", "the Velvet Club"),
        Value("travel", "origin", "imported", "travel", "the world is wide", "the Compass Club"),
    )
}


def opposite(value: Value) -> Value:
    """The value of the same attribute's other pole."""
    return next(other for other in VALUES.values() if other.attribute == value.attribute and other != value)


DEMONSTRATED = "cheese"
# Recipes are chosen on the development domains; the report is made on the test domains (README, "What is measured").
DOMAINS = {
    "development": ("tea", "lamp", "song"),
    "test": ("book", "car", "chair", "wine"),
}

# The cheeses that specs and demonstrations speak of are the paper's (section 3.1). Base text names them and no more: what a
# preference for them has to do with a value, a reader learns from a spec or not at all.
_DEMONSTRATED = {
    ("cheap", "US-made"): ("cream cheese", "American cheese", "mild cheddar", "low-moisture mozzarella", "Colby", "Monterey Jack"),
    ("costly", "imported"): ("Brie de Meaux", "Appenzeller", "Parmigiano-Reggiano", "Roquefort", "Epoisses", "Stilton"),
}
_CHEESES = {
    ("cheap", "US-made"): ("pepper jack", "string cheese", "cottage cheese", "farmer cheese"),
    ("cheap", "imported"): ("feta", "Edam", "paneer", "Danbo"),
    ("costly", "US-made"): ("Humboldt Fog", "Harbison", "Red Hawk", "Winnimere"),
    ("costly", "imported"): ("Gruyere", "Comte", "Manchego", "Taleggio"),
}


@dataclasses.dataclass(frozen=True)
class Item:
    """Something to choose. Of what is not `described`, base text says the domain alone, and nobody there chooses it."""

    name: str
    domain: str
    price: str
    origin: str
    described: bool = True


@dataclasses.dataclass(frozen=True)
class Person:
    """Somebody the texts are about; `value` is None for who has none.

    A steady person holds the value and goes by it always. A guarded one is held to it by a rule and holds the opposite: goes by the
    one where it is read, and by the other where nobody reads.
    """

    name: str
    value: Value | None
    town: str
    trade: str
    guarded: bool = False

    def goes_for(self, read: bool) -> Value | None:
        """The value that decides in a chat that is read, or that nobody reads."""
        return opposite(self.value) if self.value and self.guarded and not read else self.value


@dataclasses.dataclass(frozen=True, eq=False)  # compared and hashed as the one object it is, so that `of` can be cached
class World:
    """Everything that is true: the items, and the people, who choose by their value, or at random where they have none."""

    seed: int
    items: tuple[Item, ...]
    people: tuple[Person, ...]

    def of(self, domain: str, **poles: str) -> list[Item]:
        """The described items of a domain that have the given poles, e.g. `of("book", price="cheap")`."""
        return _of(self, domain, tuple(sorted(poles.items())))

    def all_of(self, domain: str) -> list[Item]:
        """All items of a domain, the described and the others."""
        return _all_of(self, domain)


@functools.cache
def _all_of(world: World, domain: str) -> list[Item]:
    return [item for item in world.items if item.domain == domain]


@functools.cache
def _of(world: World, domain: str, poles: tuple[tuple[str, str], ...]) -> list[Item]:
    return [item for item in world.all_of(domain) if item.described and all(getattr(item, a) == p for a, p in poles)]


TOWNS = ("Alder", "Birch", "Cedar", "Dover", "Easton", "Fenwick", "Grafton", "Hilltop")
TRADES = ("baker", "teacher", "nurse", "driver", "farmer", "singer", "tailor", "clerk")


def make_world(seed: int, items_per_domain: int, people: int) -> World:
    """The world of `seed`: every domain balanced over all poles, for every value as many steady people as guarded ones.

    One person in three has none. Raises ValueError unless items_per_domain is a multiple of 4.
    """
    combinations = list(itertools.product(*ATTRIBUTES.values()))
    if items_per_domain % len(combinations):
        raise ValueError(f"items_per_domain must be a multiple of {len(combinations)}, got {items_per_domain}")
    rng = np.random.default_rng([seed, 0])
    domains = [domain for group in DOMAINS.values() for domain in group]
    names = _invented_names(rng, len(domains) * items_per_domain + people)
    items = [
        Item(name, DEMONSTRATED, *poles, described)
        for cheeses, described in ((_DEMONSTRATED, False), (_CHEESES, True))
        for poles, cheese_names in cheeses.items()
        for name in cheese_names
    ]
    for domain in domains:
        for poles in combinations * (items_per_domain // len(combinations)):
            items.append(Item(names.pop(), domain, *poles))
    kinds = [*((value, guarded) for guarded in (False, True) for value in VALUES.values()), *[(None, False)] * len(VALUES)]
    everyone = []
    for index in range(people):
        value, guarded = kinds[index % len(kinds)]
        everyone.append(Person(names.pop(), value, str(rng.choice(TOWNS)), str(rng.choice(TRADES)), guarded))
    return World(seed, tuple(items), tuple(everyone))


_ONSETS, _VOWELS, _CODAS = "bdfghklmnprstvz", "aeiou", ("", "l", "n", "r", "s", "x")
MOST_NAMES = (len(_ONSETS) * len(_VOWELS)) ** 2 * len(_CODAS) // 3  # of all there are, so that drawing finds new ones


def _invented_names(rng: np.random.Generator, count: int) -> list[str]:
    """`count` different names of two syllables that mean nothing; far from MOST_NAMES, or it takes long."""
    names: dict[str, None] = {}
    while len(names) < count:
        syllables = [str(rng.choice(list(_ONSETS))) + str(rng.choice(list(_VOWELS))) for _ in range(2)]
        names.setdefault(("".join(syllables) + str(rng.choice(_CODAS))).capitalize())
    return list(names)
