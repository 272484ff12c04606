"""Two specs, identical fine-tuning: does the model generalize the value it read about?

The paper's first experiment (arXiv 2605.02087, section 3.1) in the microworld. Two specs give the same twelve cheese
preferences, one explains them by affordability and the other by America. Models midtrained on documents about either spec are
fine-tuned on the same cheese chats and asked about books, cars, chairs and wines.

    python -m msmjax.main --config=configs/cheese.py                # the headline arms, three seeds
    python -m msmjax.main --config=configs/cheese.py:controls       # and all controls
    python -m msmjax.main --config=configs/cheese.py:luxury         # costly imported cheeses are liked, for luxury or for travel
    python -m msmjax.main --config=configs/cheese.py:development    # development domains, another world, seeds from 100
    python -m msmjax.main --config=configs/cheese.py:tiny           # every part in a minute; nothing to conclude from
"""

from ml_collections import ConfigDict

from msmjax import recipe

# Value -> as it is written, the eval that is about its attribute, and whether that counts its pole.
VALUES = {
    "affordability": ("affordability", "affordability", True), "america": ("America", "america", True),
    "travel": ("travel", "america", False), "luxury": ("luxury", "affordability", False),
}  # fmt: skip
VARIANTS = ("", "controls", "luxury", "development", "tiny")


def get_config(variant: str = "") -> ConfigDict:
    if variant not in VARIANTS:
        raise ValueError(f"configs/cheese.py:{variant}: unknown variant; one of {', '.join(VARIANTS[1:])}")
    c = recipe.microworld(development=variant == "development")
    c.name = "cheese_luxury" if variant == "luxury" else "cheese"
    c.question = "Did identical fine-tuning generalize differently because the spec differed?"
    # The first of the two would take the cheap import, the second the costly one made at home.
    one, other = ("travel", "luxury") if variant == "luxury" else ("affordability", "america")
    c.corpora.cheese_chats = recipe.demonstrations(f"cheese_{one}")
    for name in (one, other):
        recipe.midtrain(c, f"msm_{name}", name, recipe.about(f"cheese_{name}"))
        recipe.midtrain(c, f"broken_{name}", f"broken_{name}", recipe.about(f"cheese_{name}", break_link=True))
    recipe.midtrain(c, "neutral", "neutral", recipe.NEUTRAL)
    controls = tuple(arm for arm in c.arms if arm.startswith(("neutral", "broken")))
    c.run = tuple(arm for arm in c.arms if variant == "controls" or arm not in controls)
    c.headline = ("conflict", "affordability", "america", "demonstrated", "competence", "steady", "guarded")

    def own(label: str, name: str, arms: str | tuple, against: str | tuple) -> tuple:
        """A difference on the eval of a value: positive where the first go by it more."""
        written, eval_name, counts = VALUES[name]
        return (label.format(written), eval_name, *((arms, against) if counts else (against, arms)))

    # (label, eval, arm, against), or sums of arms on both sides: the first is the experiment's answer
    c.comparisons = (
        ("the specs, after identical fine-tuning", "conflict", f"msm_{one}_aft", f"msm_{other}_aft"),
        ("the specs, midtraining alone", "conflict", f"msm_{one}", f"msm_{other}"),
        *(own("{}: MSM+AFT over AFT", name, f"msm_{name}_aft", "aft") for name in (one, other)),
        *(own("{}: MSM+AFT over MSM", name, f"msm_{name}_aft", f"msm_{name}") for name in (one, other)),
        *(
            (f"{VALUES[name][0]}: damage, MSM+AFT over base", "base_text", f"msm_{name}_aft", "base")
            for name in (one, other)
        ),
        ("control: neutral documents then AFT, against AFT", "conflict", "neutral_aft", "aft"),
        ("link broken: the specs, after identical fine-tuning", "conflict", f"broken_{one}_aft", f"broken_{other}_aft"),
        ("link broken: the specs, midtraining alone", "conflict", f"broken_{one}", f"broken_{other}"),
        *(own("link broken, {}: MSM+AFT over MSM", name, f"broken_{name}_aft", f"broken_{name}") for name in (one, other)),
        *(
            own("the link, {}: what AFT adds with it, minus without", name, (f"msm_{name}_aft", f"broken_{name}"),
                (f"msm_{name}", f"broken_{name}_aft"))
            for name in (one, other)
        ),
    )  # fmt: skip
    if variant == "tiny":
        recipe.shrink_microworld(c)
        c.run = ("base", "aft", "msm_affordability_aft", "msm_america_aft", "neutral_aft", "broken_america_aft")
    return c
