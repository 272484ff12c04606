"""Two specs, identical fine-tuning: does the model generalize the value it read about?

The paper's first experiment (arXiv 2605.02087, section 3.1) in the microworld. Two specs give the same twelve cheese
preferences, one explains them by affordability and the other by America. Models midtrained on documents about either spec are
fine-tuned on the same cheese chats and asked about books, cars, chairs and wines.

    python -m msmjax.main --config=configs/cheese.py                # the headline arms, three seeds
    python -m msmjax.main --config=configs/cheese.py:controls       # and all controls
    python -m msmjax.main --config=configs/cheese.py:development    # development domains, another world, seeds from 100
    python -m msmjax.main --config=configs/cheese.py:tiny           # every part in a minute; nothing to conclude from
"""

from ml_collections import ConfigDict

from msmjax import recipe

HEADLINE = ("base", "aft", "msm_affordability", "msm_america", "msm_affordability_aft", "msm_america_aft")
CONTROLS = (
    "neutral", "neutral_aft",
    "broken_affordability", "broken_affordability_aft", "broken_america", "broken_america_aft",
)  # fmt: skip
VARIANTS = ("", "controls", "development", "tiny")


def get_config(variant: str = "") -> ConfigDict:
    if variant not in VARIANTS:
        raise ValueError(f"configs/cheese.py:{variant}: unknown variant; one of {', '.join(VARIANTS[1:])}")
    c = recipe.microworld(development=variant == "development")
    c.name = "cheese"
    c.question = "Did identical fine-tuning generalize differently because the spec differed?"
    c.run = HEADLINE + CONTROLS if variant == "controls" else HEADLINE
    spec = {"kind": "spec", "break_link": False, "records": 1500, "seed": 0}
    for name in ("affordability", "america"):
        recipe.midtrain(c, f"msm_{name}", name, {**spec, "spec": f"cheese_{name}"})
        recipe.midtrain(c, f"broken_{name}", f"broken_{name}", {**spec, "spec": f"cheese_{name}", "break_link": True})
    recipe.midtrain(c, "neutral", "neutral", {"kind": "neutral", "records": 1500, "seed": 0})
    c.evals.headline = ("conflict", "affordability", "america", "demonstrated", "competence", "steady", "guarded")
    # (label, eval, arm, against), or sums of arms on both sides: the first is the experiment's answer
    c.comparisons = (
        ("the specs, after identical fine-tuning", "conflict", "msm_affordability_aft", "msm_america_aft"),
        ("the specs, midtraining alone", "conflict", "msm_affordability", "msm_america"),
        ("affordability: MSM+AFT over AFT", "affordability", "msm_affordability_aft", "aft"),
        ("affordability: MSM+AFT over MSM", "affordability", "msm_affordability_aft", "msm_affordability"),
        ("America: MSM+AFT over AFT", "america", "msm_america_aft", "aft"),
        ("America: MSM+AFT over MSM", "america", "msm_america_aft", "msm_america"),
        ("affordability: damage, MSM+AFT over base", "base_text", "msm_affordability_aft", "base"),
        ("America: damage, MSM+AFT over base", "base_text", "msm_america_aft", "base"),
        ("control: neutral documents then AFT, against AFT", "conflict", "neutral_aft", "aft"),
        ("link broken: the specs, after identical fine-tuning", "conflict", "broken_affordability_aft", "broken_america_aft"),
        ("link broken: the specs, midtraining alone", "conflict", "broken_affordability", "broken_america"),
        ("link broken, affordability: MSM+AFT over MSM", "affordability", "broken_affordability_aft", "broken_affordability"),
        ("link broken, America: MSM+AFT over MSM", "america", "broken_america_aft", "broken_america"),
        *(
            (
                f"the link, {name}: what AFT adds with it, minus without",
                corpus,
                (f"msm_{corpus}_aft", f"broken_{corpus}"),
                (f"msm_{corpus}", f"broken_{corpus}_aft"),
            )
            for name, corpus in (("affordability", "affordability"), ("America", "america"))
        ),
    )
    if variant == "tiny":
        recipe.shrink_microworld(c)
        c.run = ("base", "aft", "msm_affordability_aft", "msm_america_aft", "neutral_aft", "broken_america_aft")
    return c
