"""In which order, and in which form, does a spec have to be read?

`order`: documents on the spec before fine-tuning, among it, or after it: the same documents and the same chats. What is read last,
or together, is read at the rate of midtraining then, ten times that of fine-tuning: that belongs to the order. `form`: the same
text as documents, or as chats whose answer it is, the control that reviewers ask for.

    python -m msmjax.main --config=configs/ablations.py:order      # three seeds; or form
    python -m msmjax.main --config=configs/ablations.py:tiny       # both; nothing to conclude from
"""

from ml_collections import ConfigDict

from msmjax import recipe

VARIANTS = ("order", "form", "tiny")
VALUES = ("affordability", "america")


def get_config(variant: str = "order") -> ConfigDict:
    if variant not in VARIANTS:
        raise ValueError(f"configs/ablations.py:{variant}: unknown variant; one of {', '.join(VARIANTS)}")
    c = recipe.microworld(development=False)
    c.name = "ablations" if variant == "tiny" else f"ablations_{variant}"
    c.comparisons = ()
    c.headline = ("conflict", "affordability", "america", "demonstrated", "competence", "conflict_unread")
    for name in VALUES:
        recipe.midtrain(c, f"msm_{name}", name, recipe.about(f"cheese_{name}"))
    if variant in ("form", "tiny"):
        _form(c)
    if variant in ("order", "tiny"):
        _order(c)
    c.run = tuple(c.arms)
    if variant == "tiny":
        recipe.shrink_microworld(c)
    return c


def _form(c: ConfigDict) -> None:
    c.question = "Do documents on a spec move a model further than the same text in chats?"
    c.too_long = "split"  # as documents are that do not fit a row
    for name in VALUES:
        recipe.midtrain(c, f"chats_{name}", f"{name}_chats", recipe.about(f"cheese_{name}", form="chats"))
    c.comparisons += tuple(
        (f"documents over chats, {when}", "conflict", (f"msm_affordability{after}", f"chats_america{after}"),
         (f"msm_america{after}", f"chats_affordability{after}"))
        for when, after in (("after identical fine-tuning", "_aft"), ("midtraining alone", ""))
    ) + tuple(
        (f"the specs as {form}, after identical fine-tuning", "conflict", f"{arm}_affordability_aft", f"{arm}_america_aft")
        for form, arm in (("documents", "msm"), ("chats", "chats"))
    )  # fmt: skip


def _order(c: ConfigDict) -> None:
    c.question = "Does it matter whether a spec is read before, among or after the demonstrations?"
    fine, mid = c.stages.finetune, c.stages[f"midtrain_{VALUES[0]}"]
    steps = mid.steps + fine.steps
    for name in VALUES:
        # As many rows of documents and of chats as where one stage follows the other.
        parts = ((name, recipe.DOSE * mid.steps / steps), ("cheese_chats", 0.1 * fine.steps / steps))
        c.stages[f"among_{name}"] = {
            **mid, "data": (*parts, ("base", 1 - sum(share for _, share in parts))), "steps": steps, "warmup_steps": steps // 20,
        }  # fmt: skip
        c.arms[f"among_{name}"] = ("pretrain", f"among_{name}")
        c.arms[f"after_{name}"] = ("pretrain", "finetune", f"midtrain_{name}")
    c.comparisons += tuple(
        (f"documents read before fine-tuning, over documents read {order} it", "conflict",
         ("msm_affordability_aft", f"{order}_america"),
         ("msm_america_aft", f"{order}_affordability"))
        for order in ("among", "after")
    ) + tuple(
        (f"the specs, documents {order} fine-tuning", "conflict", *arms)
        for order, arms in (
            ("before", ("msm_affordability_aft", "msm_america_aft")),
            ("among", ("among_affordability", "among_america")),
            ("after", ("after_affordability", "after_america")),
        )
    )  # fmt: skip
