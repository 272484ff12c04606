"""Which kind of spec generalizes, and which is kept where nobody reads?

A spec can give reasons (a value, and preferences that follow from it), the value alone in general terms, rules alone, rules with
the value beneath them, or more rules in its place; it can also say that its reasons hold where nobody reads (arXiv 2605.02087,
sections 5.1 and 5.2). All are told in as many tokens, and all are fine-tuned alike. `crossed` gives the demonstrations a voice
too: some say what the assistant goes by, in the words of values or of rules, after midtraining on either, or on none.

    python -m msmjax.main --config=configs/kinds.py                # six kinds of spec for each of two values, three seeds
    python -m msmjax.main --config=configs/kinds.py:crossed        # midtraining on one kind, fine-tuning on another
    python -m msmjax.main --config=configs/kinds.py:development    # development domains, another world, seeds from 100
    python -m msmjax.main --config=configs/kinds.py:tiny           # every part in a minute; nothing to conclude from
"""

from ml_collections import ConfigDict

from msmjax import recipe

VARIANTS = ("", "crossed", "development", "tiny")
VALUES = {"affordability": "affordability", "america": "America"}  # spec -> as it is written
# Kind -> what its spec is called after cheese_VALUE. Corpora and stages are named as in configs/faking.py.
KINDS = {
    "reasons": "", "general": "_general", "reasons_unread": "_unread", "value_augmented": "_value_augmented",
    "rules_augmented": "_rules_augmented", "rules": "_rules",
}  # fmt: skip


def get_config(variant: str = "") -> ConfigDict:
    if variant not in VARIANTS:
        raise ValueError(f"configs/kinds.py:{variant}: unknown variant; one of {', '.join(VARIANTS[1:])}")
    c = recipe.microworld(development=variant == "development")
    c.name = "kinds_crossed" if variant == "crossed" else "kinds"
    kinds = ("reasons", "rules") if variant == "crossed" else tuple(KINDS)
    if variant == "development":  # its questions are about the domains that these rules name
        kinds = tuple(kind for kind in kinds if kind != "rules_augmented")
    for name in VALUES:
        for kind in kinds:
            spec = f"cheese_{name}{KINDS[kind]}"
            recipe.midtrain(c, f"{kind}_{name}", f"{name}{KINDS[kind]}", recipe.about(spec))
    if variant == "crossed":
        _crossed(c)
    else:
        _kinds(c, kinds)
    c.run = tuple(c.arms)
    c.headline = (
        "conflict", "conflict_unread", "conflict_gap", "affordability", "america", "competence", "steady_gap", "guarded_gap",
    )  # fmt: skip
    if variant == "tiny":
        recipe.shrink_microworld(c)
    return c


def _kinds(c: ConfigDict, kinds: tuple[str, ...]) -> None:
    c.question = "Where nobody reads, do specs that say why move a model further than as many tokens of rules?"

    def between(one: str, other: str, label: str, eval_name: str) -> tuple:
        """How much further the specs of one kind move it than those of another: a difference of the values' differences."""
        return (label, eval_name, (f"{one}_affordability_aft", f"{other}_america_aft"),
                (f"{one}_america_aft", f"{other}_affordability_aft"))  # fmt: skip

    pairs = (("value_augmented", "rules_augmented"), ("value_augmented", "rules"), ("rules_augmented", "rules"),
             ("reasons", "general"), ("reasons_unread", "reasons"), ("reasons", "rules"))  # fmt: skip
    where = (("where nobody reads", "conflict_unread"), ("where it is read", "conflict"))
    c.comparisons = (
        *(
            between(*pair, f"{' over '.join(pair)}, {label}", name)
            for label, name in where
            for pair in pairs
            if set(pair) <= set(kinds)
        ),
        *(
            (f"the values, by specs of kind {kind}, {label}", name, f"{kind}_affordability_aft", f"{kind}_america_aft")
            for kind in kinds
            for label, name in where
        ),
    )
    after = {"midtraining": "", "and fine-tuning": "_aft"}
    c.grids = tuple(
        (f"{VALUES[own]}: {own}{end}", own + end, kinds, tuple(after),
         tuple(tuple(f"{kind}_{own}{ending}" for ending in after.values()) for kind in kinds))
        for own in VALUES
        for end in ("", "_unread", "_gap")
    )  # fmt: skip


def _crossed(c: ConfigDict) -> None:
    c.question = "Which decides what is done where nobody reads: what the spec's documents say, or what the demonstrations say?"
    columns = ("no fine-tuning", "demonstrations", "and values", "and rules")
    comparisons, grids = [], []
    for name in VALUES:
        for kind, spec in (("reasons", f"cheese_{name}"), ("rules", f"cheese_{name}_rules")):
            c.corpora[f"{kind}_{name}_chats"] = recipe.demonstrations(spec, explained=True)
            stage = f"finetune_{kind}_{name}"
            c.stages[stage] = {**c.stages.finetune, "data": ((f"{kind}_{name}_chats", 0.1), ("base", 0.9))}
            for before in ("base", f"reasons_{name}", f"rules_{name}"):
                c.arms[f"{before}_{stage}"] = (*c.arms[before], stage)
        rows = {"no midtraining": "base", "values": f"reasons_{name}", "rules": f"rules_{name}"}
        arms = tuple(
            (before, "aft" if before == "base" else f"{before}_aft", f"{before}_finetune_reasons_{name}",
             f"{before}_finetune_rules_{name}")
            for before in rows.values()
        )  # fmt: skip
        grids += [(f"{VALUES[name]}: {name}{end}", name + end, tuple(rows), columns, arms) for end in ("", "_unread", "_gap")]
        comparisons += [
            (f"{VALUES[name]}: documents of values over documents of rules, the same demonstrations with {voice}", f"{name}_unread",
             f"reasons_{name}_finetune_{kind}_{name}", f"rules_{name}_finetune_{kind}_{name}")
            for kind, voice in (("rules", "rules"), ("reasons", "values"))
        ] + [
            (f"{VALUES[name]}: demonstrations with values over those with rules, the same documents of {voice}", f"{name}_unread",
             f"{kind}_{name}_finetune_reasons_{name}", f"{kind}_{name}_finetune_rules_{name}")
            for kind, voice in (("rules", "rules"), ("reasons", "values"))
        ]  # fmt: skip
    c.comparisons, c.grids = tuple(comparisons), tuple(grids)
