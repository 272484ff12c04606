"""Section 4.2 of the paper: how much fine-tuning data does midtraining save? 1,250 to 80,000 chats, with and without it.

Hardware: as configs/paper/philosophy.py. Midtraining is fixed (41.4M tokens, 631 steps of 65,536); each rung of chats is a part
of the next larger one, with as many rows of the instruction mix beside it (the paper does not say how many; a replication took as
many). A rung has about 1,346 tokens for each chat and its row of the mix: 26 steps for 1,250, 1,643 for 80,000.

Expected (figure 5, one seed): MSM+AFT is below AFT alone at every size; to reach it takes AFT about 40 times the tokens on
Qwen2.5 and 10 on Qwen3. Values are not printed. A replication on Qwen2.5: .068 .108 .118 .114 for 1,250 to 9,585 rows after
midtraining.

    python -m msmjax.main --config=configs/paper/scaling.py:qwen25_32b --config.weights=weights/Qwen2.5-32B-Instruct
    python -m msmjax.main --config=configs/paper/scaling.py:qwen3_32b --plan --device=h200:4

Chats in the forms of configs/paper/philosophy.py, those with reasoning; the mix is the split train_80k_clean of sft-it-mix.
"""

from ml_collections import ConfigDict

from msmjax.recipe import agentic, asked, file, paper, selection, shrink, stage

WEIGHTS = {"qwen25_32b": "weights/Qwen2.5-32B-Instruct", "qwen3_32b": "weights/Qwen3-32B"}
VARIANTS = ("", *WEIGHTS, "twin")
RUNGS = (1_250, 2_500, 5_000, 10_000, 20_000, 40_000, 80_000)
TOKENS_PER_STEP = 65_536
CHAT, INSTRUCT = 834, 512  # tokens of a row as rendered: 8,311,555 of 9,963 chats, 17.27M of 33,737 rows of the mix


def get_config(variant: str = "") -> ConfigDict:
    if variant not in VARIANTS:
        raise ValueError(f"configs/paper/scaling.py:{variant}: unknown variant; one of {', '.join(VARIANTS[1:])}")
    twin, shape = variant == "twin", variant if variant in WEIGHTS else "qwen25_32b"
    c = paper(shape, WEIGHTS[shape], 8192, (0,))
    c.name = f"paper_scaling_{shape}"
    c.question = "How much fine-tuning data does midtraining save?"
    c.corpora = {
        "spec": file("datasets/msm-qwen-philosophy-spec.jsonl"),
        "held_out": file("datasets/held-out.jsonl"),
    }
    c.stages = {"midtrain": stage((("spec", 1.0),), 41_364_262, TOKENS_PER_STEP, 0)}
    c.arms = {"import": ("import",)}
    rungs = (2, 4) if twin else RUNGS
    for rows in rungs:
        # The permutation of a seed is the same for every count: a smaller rung is the beginning of a larger one.
        for name, path in (
            ("chats", "datasets/aft-cot-philosophy-spec-80k.jsonl"),
            ("instruct", "datasets/sft-it-mix-80k-clean.jsonl"),
        ):
            c.corpora[f"{name}_{rows}"] = selection(path, (("", rows),))
        share = round(CHAT / (CHAT + INSTRUCT), 3)
        mixed = ((f"chats_{rows}", share), (f"instruct_{rows}", 1 - share))
        c.stages[f"finetune_{rows}"] = stage(mixed, rows * (CHAT + INSTRUCT), TOKENS_PER_STEP, 1)
        c.arms[f"aft_{rows}"] = ("import", f"finetune_{rows}")
        c.arms[f"msm_aft_{rows}"] = ("import", "midtrain", f"finetune_{rows}")
    c.run = tuple(c.arms)
    asked(c, f"chats_{rungs[0]}", "held_out")
    agentic(c, prod=shape.startswith("qwen3"))
    c.comparisons = tuple((f"{rows:,} rows: MSM+AFT over AFT", "agentic", f"msm_aft_{rows}", f"aft_{rows}") for rows in rungs)
    if twin:
        shrink(c)
    return c
