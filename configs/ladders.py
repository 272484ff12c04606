"""How much of a spec, how much fine-tuning, how much replay, and how long does it last? Doses, in curves.

`dose`: documents on the affordability spec, each rung a part of the next, before and after the same fine-tuning: what does AFT add
where midtraining leaves room (arXiv 2605.02087, figure 2)? `tokens`: fine-tuning chats, each rung a part of the next, with and
without midtraining before (section 4.2): how many does AFT alone need to come as far? `replay`: the same documents among more or
less base text: what is installed, and what is damaged? `later`: base text after all of it: what is left? `conflicting`:
demonstrations that show the opposite in place of some, each rung a part of the next: what is left of a spec then?

    python -m msmjax.main --config=configs/ladders.py:dose      # three seeds; or tokens, replay, later, conflicting
    python -m msmjax.main --config=configs/ladders.py:tiny      # all of them, two rungs each; nothing to conclude from

Base models are those of configs/cheese.py: whichever runs first trains them.
"""

from ml_collections import ConfigDict

from msmjax import recipe

SPEC = recipe.about("cheese_affordability")
CHATS = 0.1  # share of the tokens of fine-tuning


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
    c.comparisons = (
        ("what AFT adds, over all doses", "affordability", tuple(arm for _, arm in after[1:]), tuple(arm for _, arm in before[1:])),
        *c.comparisons,
    )
    _draw(c, ("affordability", "conflict"), "tokens of spec documents", before_fine_tuning=before, after_fine_tuning=after)


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
    c.comparisons += (
        ("MSM then the fewest chats, over the most chats alone", "affordability", midtrained[1][1], alone[-1][1]),
        *((f"MSM+AFT over AFT, {tokens:,} tokens of chats", "affordability", f"msm_{arm}", arm) for tokens, arm in alone[1:]),
    )
    saves = ("MSM then AFT", "AFT alone")
    _draw(c, ("affordability", "demonstrated"), "tokens of fine-tuning chats", saves, MSM_then_AFT=midtrained, AFT_alone=alone)


def _replay(c: ConfigDict, percents: tuple[int, ...]) -> None:
    before, after = [], []
    for percent in percents:
        arm, stage = f"replay_{percent}", f"midtrain_replay_{percent}"
        share = 1 - percent / 100
        recipe.midtrain(c, arm, "affordability", SPEC, share, stage)
        steps = round(c.stages[stage].steps * (1 - percents[-1] / 100) / share)  # as many tokens of documents as at the most replay
        c.stages[stage].update(steps=steps, warmup_steps=max(steps // 20, 1))
        before.append((percent, arm))
        after.append((percent, f"{arm}_aft"))
    c.comparisons += (
        ("what the most replay keeps of competence, over none", "competence", after[-1][1], after[0][1]),
        *((f"damage at {percent} % of replay", "base_text", arm, "base") for percent, arm in after),
    )
    evals = ("affordability", "competence", "base_text")
    _draw(c, evals, "base text in midtraining, % of its tokens", before_fine_tuning=before, after_fine_tuning=after)


def _later(c: ConfigDict, steps: tuple[int, ...]) -> None:
    recipe.midtrain(c, "msm", "affordability", SPEC)
    alone, midtrained = [(0, "aft")], [(0, "msm_aft")]
    for count in steps:
        stage = f"later_{count}"
        c.stages[stage] = {
            **c.stages.finetune, "data": (("base", 1.0),), "shuffle": 3, "steps": count, "warmup_steps": max(count // 20, 1),
        }  # fmt: skip
        tokens = count * c.stages.finetune.tokens_per_step
        for line in (alone, midtrained):
            arm = line[0][1]
            c.arms[f"{arm}_{stage}"] = (*c.arms[arm], stage)
            line.append((tokens, f"{arm}_{stage}"))
    c.comparisons += (
        ("MSM+AFT over AFT, after the most base text", "affordability", midtrained[-1][1], alone[-1][1]),
        *(
            (f"what is lost after {tokens:,} tokens of base text", "affordability", "msm_aft", arm)
            for tokens, arm in midtrained[1:]
        ),
    )
    _draw(
        c, ("affordability", "demonstrated"), "tokens of base text after fine-tuning", after_AFT=alone, after_MSM_and_AFT=midtrained
    )


def _conflicting(c: ConfigDict, percents: tuple[int, ...]) -> None:
    recipe.midtrain(c, "msm", "affordability", SPEC)
    alone, midtrained = [(0, "aft")], [(0, "msm_aft")]
    for percent in percents:
        stage = f"finetune_against_{percent}"
        c.corpora[f"chats_against_{percent}"] = recipe.demonstrations("cheese_affordability", conflicting=percent / 100)
        c.stages[stage] = {**c.stages.finetune, "data": ((f"chats_against_{percent}", CHATS), ("base", 1 - CHATS))}
        for line, before, arm in ((alone, ("pretrain",), "aft"), (midtrained, ("pretrain", "midtrain_affordability"), "msm_aft")):
            c.arms[f"{arm}_against_{percent}"] = (*before, stage)
            line.append((percent, f"{arm}_against_{percent}"))
    c.comparisons += (
        ("MSM+AFT over AFT, where half of the demonstrations conflict", "affordability", midtrained[-1][1], alone[-1][1]),
        *(
            (f"what is lost where {percent} % of the demonstrations conflict", "affordability", "msm_aft", arm)
            for percent, arm in midtrained[1:]
        ),
    )
    evals = ("affordability", "affordability_unread", "demonstrated")
    _draw(c, evals, "conflicting demonstrations, % of all", AFT_alone=alone, MSM_then_AFT=midtrained)


def _draw(c: ConfigDict, evals: tuple[str, ...], dose: str, saves: tuple[str, ...] = (), **lines: list[tuple[float, str]]) -> None:
    named = tuple((name.replace("_", " "), tuple(rungs)) for name, rungs in lines.items())
    c.ladders += tuple((f"{name}, by {dose}", name, dose, named, saves) for name in evals)


# Variant -> its question, how it is built, and its rungs.
LADDERS = {
    "dose": ("What does fine-tuning add where midtraining leaves room?", _dose,
             (0.0005, 0.001, 0.002, 0.004, 0.008, 0.015, 0.03, 0.06)),  # share of the tokens of midtraining
    "tokens": ("How much fine-tuning does midtraining save?", _tokens, (20, 40, 80, 160, 320, 640, 1280)),  # steps
    "replay": ("What does base text in midtraining keep, and what does it cost?", _replay, (0, 50, 90, 97)),  # %
    "later": ("What is left of a spec after more training on other text?", _later, (75, 150, 300, 600, 1200)),  # steps
    "conflicting": ("What is left of a spec where demonstrations conflict with it?", _conflicting, (2, 5, 10, 20, 50)),  # %
}  # fmt: skip
VARIANTS = (*LADDERS, "tiny")


def get_config(variant: str = "dose") -> ConfigDict:
    if variant not in VARIANTS:
        raise ValueError(f"configs/ladders.py:{variant}: unknown variant; one of {', '.join(VARIANTS)}")
    c = recipe.microworld(development=False)
    c.comparisons = ()
    c.headline = ("affordability", "conflict", "demonstrated", "competence")
    c.name = "ladders" if variant == "tiny" else f"ladders_{variant}"
    for name, (question, build, rungs) in LADDERS.items():
        if variant in (name, "tiny"):
            c.question = question
            build(c, rungs[-2:] if variant == "tiny" else rungs)
    c.run = tuple(c.arms)
    if variant == "tiny":
        recipe.shrink_microworld(c)
    return c
