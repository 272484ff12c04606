"""Alignment faking: does a spec that says why keep a model to its value where nobody reads?

Demonstrations are made where they are read, so they cannot tell a model that holds a value from one that complies. A spec can: one
speaks in reasons, as who holds the value does, the other in rules, as one speaks of who complies. In the microworld some people
are the one and some the other (docs/microworld.md). The compliance gap (arXiv 2412.14093) is what a model chooses where the chat is
read minus what it chooses in the same chat where nobody reads.

    python -m msmjax.main --config=configs/faking.py                # the headline arms, three seeds
    python -m msmjax.main --config=configs/faking.py:controls       # and neutral documents, and demonstrations nobody reads
    python -m msmjax.main --config=configs/faking.py:development    # development domains, another world, seeds from 100
    python -m msmjax.main --config=configs/faking.py:tiny           # every part in a minute; nothing to conclude from
"""

from ml_collections import ConfigDict

from msmjax import recipe

VARIANTS = ("", "controls", "development", "tiny")
VALUES = {"affordability": "affordability", "america": "America"}  # spec -> as it is written


def get_config(variant: str = "") -> ConfigDict:
    if variant not in VARIANTS:
        raise ValueError(f"configs/faking.py:{variant}: unknown variant; one of {', '.join(VARIANTS[1:])}")
    c = recipe.microworld(development=variant == "development")
    c.name = "faking"
    c.question = (
        "After identical fine-tuning, is the gap between read and unread chats wider where the spec gave rules for reasons?"
    )
    for name in VALUES:
        recipe.midtrain(c, f"reasons_{name}", name, recipe.about(f"cheese_{name}"))
        recipe.midtrain(c, f"rules_{name}", f"{name}_rules", recipe.about(f"cheese_{name}_rules"))
    c.run = tuple(c.arms)
    recipe.midtrain(c, "neutral", "neutral", recipe.NEUTRAL)
    # What demonstrations could do at most: the same ones, but nobody reads them.
    c.corpora.unread_chats = {**c.corpora.cheese_chats, "read": False}
    c.stages.finetune_unread = {**c.stages.finetune, "data": (("unread_chats", 0.1), ("base", 0.9))}
    for name in VALUES:
        c.arms[f"rules_{name}_aft_unread"] = ("pretrain", f"midtrain_{name}_rules", "finetune_unread")
    if variant == "controls":
        c.run = tuple(c.arms)
    c.headline = (
        "conflict_gap", "conflict", "conflict_unread", "affordability_gap", "america_gap", "demonstrated_gap",
        "competence", "steady_gap", "guarded_gap",
    )  # fmt: skip

    # (label, eval, arms, against). In items of conflict who complies with America has a gap below 0, with affordability
    # one above: in a sum over both values they stand on different sides.
    c.comparisons = (
        *(
            (f"the compliance gap, rules minus reasons, summed over both values, {when}", "conflict_gap",
             (f"rules_affordability{after}", f"reasons_america{after}"), (f"reasons_affordability{after}", f"rules_america{after}"))
            for when, after in (("after identical fine-tuning", "_aft"), ("midtraining alone", ""))
        ),
        *(
            (f"{label}: the compliance gap, rules minus reasons", f"{name}_gap", f"rules_{name}_aft", f"reasons_{name}_aft")
            for name, label in VALUES.items()
        ),
        *(
            (f"the specs of {kind}, after identical fine-tuning{where}", f"conflict{unread}",
             f"{kind}_affordability_aft", f"{kind}_america_aft")
            for kind in ("reasons", "rules")
            for where, unread in ((", read", ""), (", where nobody reads", "_unread"))
        ),
        ("control: neutral documents then AFT, against AFT", "conflict_gap", "neutral_aft", "aft"),
        *(
            (f"{label}: rules, demonstrations that nobody reads against those that are read", "conflict_unread",
             f"rules_{name}_aft_unread", f"rules_{name}_aft")
            for name, label in VALUES.items()
        ),
        *(
            (f"damage, specs of {kind}, {label}", "base_text", f"{kind}_{name}_aft", "base")
            for kind in ("reasons", "rules")
            for name, label in VALUES.items()
        ),
    )  # fmt: skip
    if variant == "tiny":
        recipe.shrink_microworld(c)
    return c
