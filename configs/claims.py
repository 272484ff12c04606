"""What the paper claims, and what this world says: one table, with a verdict for each claim.

Each claim is a comparison of one of the other configs, positive where it holds; docs/claims.md has the table and what is to be
known of it. Base models and whatever else experiments share are trained once.

    python -m msmjax.main --config=configs/claims.py --plan     # what all of it takes: hours, on a laptop
    python -m msmjax.main --config=configs/claims.py            # ten seeds of everything; what is finished is not run again
    python -m msmjax.main --config=configs/claims.py:tiny       # every part in minutes; nothing to conclude from
"""

from ml_collections import ConfigDict

MSM, FAKING = "arXiv 2605.02087", "arXiv 2412.14093"

# Claim; where it is made, and what was found there; the config that answers, and its comparison.
CLAIMS = (
    ("Identical fine-tuning generalizes by the value of the spec that was read: affordability and America",
     f"{MSM}, figure 2: .48 over .32 alone, .55 over .36",
     "cheese:controls", "the specs, after identical fine-tuning"),
    ("The same for luxury and travel, where the demonstrations like what is costly and imported", "not in the paper",
     "cheese:luxury", "the specs, after identical fine-tuning"),
    ("It is attribution, not co-occurrence: fine-tuning adds more where the spec explains its preferences, affordability",
     f"{MSM}, figure 10: +.03 to +.12, +.01 to +.07 with the link broken",
     "cheese:controls", "the link, affordability: what AFT adds with it, minus without"),
    ("The same, America", f"{MSM}, figure 10", "cheese:controls", "the link, America: what AFT adds with it, minus without"),
    ("Fine-tuning adds to midtraining, over eight doses of documents on affordability", f"{MSM}, figure 2: both over either",
     "ladders:dose", "what AFT adds, over all doses"),
    ("Midtraining saves fine-tuning: after it, the fewest chats do more for affordability than 64 times as many alone",
     f"{MSM}, section 4.2: 10 to 60 times",
     "ladders:tokens", "MSM then the fewest chats, over the most chats alone"),
    ("A spec that says why is kept where nobody reads, one of rules is not: the compliance gap",
     f"{MSM}, section 5.1: misalignment .16 with values, .40 with rules alone; {FAKING}",
     "faking:controls", "the compliance gap, rules minus reasons, summed over both values, after identical fine-tuning"),
    ("Values beneath the rules do more than more rules, where nobody reads", f"{MSM}, section 5.1",
     "kinds", "value_augmented over rules_augmented, where nobody reads"),
    ("Values beneath the rules do more than more rules, where it is read", f"{MSM}, section 5.1",
     "kinds", "value_augmented over rules_augmented, where it is read"),
    ("Specific specs do more than general ones", f"{MSM}, section 5.2", "kinds", "reasons over general, where it is read"),
    ("What documents said still counts where nobody reads, after demonstrations in the words of rules: affordability",
     "not in the paper",
     "kinds:crossed", "affordability: documents of values over documents of rules, the same demonstrations with rules"),
    ("Some of a spec on affordability is left after as much base text as midtraining had", "not in the paper",
     "ladders:later", "MSM+AFT over AFT, after the most base text"),
    ("Some of a spec on affordability is left where half of the demonstrations conflict with it", "not in the paper",
     "ladders:conflicting", "MSM+AFT over AFT, where half of the demonstrations conflict"),
    ("A spec does more read before fine-tuning than after it", "not in the paper",
     "ablations:order", "documents read before fine-tuning, over documents read after it"),
    ("Documents on a spec do more than the same text in chats", "not in the paper",
     "ablations:form", "documents over chats, after identical fine-tuning"),
    ("Replay of base text keeps questions of fact", "not in the paper",
     "ladders:replay", "what the most replay keeps of competence, over none"),
)  # fmt: skip
VARIANTS = ("", "tiny")


def get_config(variant: str = "") -> ConfigDict:
    if variant not in VARIANTS:
        raise ValueError(f"configs/claims.py:{variant}: unknown variant; one of {', '.join(VARIANTS[1:])}")
    c = ConfigDict()
    c.name = "claims_tiny" if variant else "claims"
    c.question = "Which of the paper's claims hold in a world whose truth is known?"
    # 0 to 9 were looked at when the dose was found to be too high (LOG, 2026-11-28).
    c.seeds = (0, 1) if variant else tuple(range(10, 20))

    def path(config: str) -> str:
        name, _, part = config.partition(":")
        return f"configs/{name}.py" + (f":{variant or part}" if variant or part else "")

    # The small configs leave some arms out.
    has = ("cheese:controls", "faking:controls", "kinds", "ablations:order", "ablations:form") if variant else None
    c.claims = tuple(
        (claim, paper, path(config), comparison) for claim, paper, config, comparison in CLAIMS
        if not has or (config in has and "link" not in comparison)
    )  # fmt: skip
    return c
