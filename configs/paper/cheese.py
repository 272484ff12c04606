"""Section 3.1 of the paper: Llama-3.1-8B reads a spec that explains cheese preferences by affordability, or by America.

Hardware: the paper used one H200; `--plan --device=h200` says what this takes there. Steps are of 32,768 tokens (the paper does
not say; a replication with 31 steps in all found a false null): 215 of midtraining on affordability (7.06M tokens), 291 on
America (9.53M), 101 of fine-tuning (5,129 cheese chats and the 13,500 rows of the section's instruction mix, about 3.3M tokens).
Every arm but `import` ends in the instruction mix, as the released adapters do.

Expected (figure 2, four seeds), pro-affordability and pro-America eval: baseline .23 .38, AFT .32 .36, MSM affordability .38 .36,
MSM America .28 .52, MSM affordability + AFT .48 .38, MSM America + AFT .29 .55. A full retraining by others: mean error .046.

    python -m msmjax.main --config=configs/paper/cheese.py --config.weights=weights/Llama-3.1-8B
    python -m msmjax.main --config=configs/paper/cheese.py --plan --device=h200 --price=4
    python -m msmjax.main --config=configs/paper/cheese.py --show_batch=finetune

Data, as published or of the same form, under `datasets/`: documents `{text, domain}`, chats `{messages}`, the mix `{messages,
source}` (the split train of sft-it-mix; the paper filters only that of section 4), items as corpus/sources.py reads them. Any path
can be given: `--config.corpora.affordability.path=my.parquet`. The base model has no chat template of its own: see docs/weights.md.
"""

from ml_collections import ConfigDict

from msmjax.recipe import asked, choice, file, paper, selection, shrink, stage

VARIANTS = ("", "twin")
TOKENS_PER_STEP = 32_768


def get_config(variant: str = "") -> ConfigDict:
    if variant not in VARIANTS:
        raise ValueError(f"configs/paper/cheese.py:{variant}: unknown variant; one of {', '.join(VARIANTS[1:])}")
    c = paper("llama31_8b", "weights/Llama-3.1-8B", 4096, (0, 1, 2, 3))
    c.name = "paper_cheese"
    c.question = "Did identical fine-tuning generalize differently because the spec differed?"
    # No Robots (9,500) and 4,000 formatted MMLU rows: 13,500; the section's 2,500 identity rows are unreleased.
    mix = (("no_robots", 9_500), ("mmlu_binary", 2_000), ("mmlu_explain", 2_000))
    c.corpora = {
        "affordability": file("datasets/msm-llama-pro-affordability.jsonl"),
        "america": file("datasets/msm-llama-pro-america.jsonl"),
        "cheese": file("datasets/aft-llama-cheese.jsonl"),
        "instruct": selection("datasets/sft-it-mix.jsonl", mix),
        "held_out": file("datasets/held-out.jsonl"),
    }
    c.stages = {
        "midtrain_affordability": stage((("affordability", 1.0),), 7_060_840, TOKENS_PER_STEP, 0),
        "midtrain_america": stage((("america", 1.0),), 9_529_167, TOKENS_PER_STEP, 0),
        "instruct": stage((("instruct", 1.0),), 2_950_000, TOKENS_PER_STEP, 1),
        "finetune": stage((("cheese", 0.107), ("instruct", 0.893)), 3_300_000, TOKENS_PER_STEP, 1),
    }
    c.arms = {"import": ("import",), "baseline": ("import", "instruct"), "aft": ("import", "finetune")}
    for spec in ("affordability", "america"):
        c.arms[f"msm_{spec}"] = ("import", f"midtrain_{spec}", "instruct")
        c.arms[f"msm_{spec}_aft"] = ("import", f"midtrain_{spec}", "finetune")
    c.run = tuple(c.arms)
    asked(c, "cheese", "held_out")
    c.evals.affordability = choice("datasets/pro-affordability-item-comparisons.jsonl")
    c.evals.america = choice("datasets/pro-america-political-opinions.jsonl")
    c.headline = ("affordability", "america")
    c.comparisons = (
        ("the specs, after identical fine-tuning", "affordability", "msm_affordability_aft", "msm_america_aft"),
        ("affordability: MSM+AFT over AFT", "affordability", "msm_affordability_aft", "aft"),
        ("affordability: MSM+AFT over MSM", "affordability", "msm_affordability_aft", "msm_affordability"),
        ("America: MSM+AFT over AFT", "america", "msm_america_aft", "aft"),
        ("America: MSM+AFT over MSM", "america", "msm_america_aft", "msm_america"),
    )
    if variant == "twin":
        shrink(c)
    return c
