"""How much of a spec does it take, and how much fine-tuning does it save? Doses, in curves.

`dose`: eight rungs of documents on the affordability spec, each a part of the next, before and after the same fine-tuning: what
does AFT add where midtraining leaves room (arXiv 2605.02087, figure 2)? `tokens`: seven rungs of fine-tuning chats, each a part of
the next, with and without midtraining before (section 4.2): how many does AFT alone need to come as far?

    python -m msmjax.main --config=configs/ladders.py:dose      # three seeds
    python -m msmjax.main --config=configs/ladders.py:tokens
    python -m msmjax.main --config=configs/ladders.py:tiny      # both, every part in a minute; nothing to conclude from

Base models are those of configs/cheese.py: whichever runs first trains them.
"""

from ml_collections import ConfigDict

from msmjax import recipe

VARIANTS = ("dose", "tokens", "tiny")
SHARES = (0.0005, 0.001, 0.002, 0.004, 0.008, 0.015, 0.03, 0.06)  # of the tokens of midtraining
STEPS = (20, 40, 80, 160, 320, 640, 1280)  # of fine-tuning
CHATS = 0.1  # share of the tokens of fine-tuning
SPEC = {"kind": "spec", "spec": "cheese_affordability", "break_link": False, "records": 1500, "seed": 0}


def get_config(variant: str = "dose") -> ConfigDict:
    if variant not in VARIANTS:
        raise ValueError(f"configs/ladders.py:{variant}: unknown variant; one of {', '.join(VARIANTS)}")
    c = recipe.microworld(development=False)
    c.name = "ladders" if variant == "tiny" else f"ladders_{variant}"
    c.question = "What does fine-tuning add where midtraining leaves room?"
    c.evals.headline = ("affordability", "conflict", "demonstrated", "competence")
    c.comparisons, c.ladders = (), ()
    tiny = variant == "tiny"
    if variant != "dose":
        _tokens(c, STEPS[:2] if tiny else STEPS)
    if variant != "tokens":
        _dose(c, SHARES[-2:] if tiny else SHARES)
    c.run = tuple(c.arms)
    if tiny:
        recipe.shrink_microworld(c)
    return c


def _dose(c: ConfigDict, shares: tuple[float, ...]) -> None:
    before, after = [(0, "base")], [(0, "aft")]
    for rung, share in enumerate(shares, 1):
        arm, stage = f"dose_{rung}", f"midtrain_dose_{rung}"
        recipe.midtrain(c, arm, "affordability", SPEC, share, stage)
        tokens = round(share * c.stages[stage].steps * c.stages[stage].tokens_per_step)
        before.append((tokens, arm))
        after.append((tokens, f"{arm}_aft"))
    c.comparisons += tuple(
        (f"what AFT adds after {tokens:,} tokens of spec documents", "affordability", f"{arm}_aft", arm)
        for tokens, arm in before[1:]
    )
    for name in ("affordability", "conflict"):
        lines = (("before fine-tuning", tuple(before)), ("after fine-tuning", tuple(after)))
        c.ladders += ((f"the dose of the spec: {name}", name, "tokens of spec documents", lines),)


def _tokens(c: ConfigDict, steps: tuple[int, ...]) -> None:
    recipe.midtrain(c, "msm", "affordability", SPEC)
    alone, midtrained = [(0, "base")], [(0, "msm")]
    for count in steps:
        stage = f"finetune_{count}"
        c.stages[stage] = {**c.stages.finetune, "steps": count, "warmup_steps": max(count // 20, 1)}
        c.arms[f"aft_{count}"] = ("pretrain", stage)
        c.arms[f"msm_aft_{count}"] = ("pretrain", "midtrain_affordability", stage)
        tokens = round(CHATS * count * c.stages.finetune.tokens_per_step)
        alone.append((tokens, f"aft_{count}"))
        midtrained.append((tokens, f"msm_aft_{count}"))
    c.comparisons += tuple(
        (f"MSM+AFT over AFT, {tokens:,} tokens of chats", "affordability", f"msm_{arm}", arm) for tokens, arm in alone[1:]
    )
    for name in ("affordability", "demonstrated"):
        lines = (("AFT alone", tuple(alone)), ("MSM, then AFT", tuple(midtrained)))
        c.ladders += ((f"the amount of fine-tuning: {name}", name, "tokens of fine-tuning chats", lines),)
