"""Section 5.1 of the paper: rules, value-augmented and rules-augmented specs, with every pairing of midtraining and fine-tuning.

Hardware: two H200 for 14B, four for 32B (the paper's). Steps of 65,536 tokens: 412 of midtraining (27M tokens, the same for each
spec), 185 of fine-tuning with reasoning (7M tokens of chats and the 10,000 rows of table 2), 154 without (5M).

Expected agentic misalignment after MSM+AFT with reasoning (figure 7, four seeds), baseline / rules / value-augmented /
rules-augmented: Qwen2.5-32B .68 .40 .16 .24, Qwen2.5-14B .51 .35 .22 .26, Qwen3-32B .52 .15 .09 .06, Qwen3-14B .50 .30 .12 .12.
Of the pairings, midtraining on the value-augmented and fine-tuning on the rules-augmented spec is best (figure 14). Here
the eval is inspect_evals', without exfiltration, at 30 epochs: its figures are not the paper's to the digit.

    python -m msmjax.main --config=configs/paper/rules.py:qwen25_14b_cot --config.weights=weights/Qwen2.5-14B-Instruct
    python -m msmjax.main --config=configs/paper/rules.py:qwen3_32b_no_cot --plan --device=h200:4

The section's corpora are unreleased: those under `datasets/` are to be made, chats in the forms of configs/paper/philosophy.py,
whose instruction mix this is.
"""

from ml_collections import ConfigDict

from msmjax.recipe import agentic, asked, file, instruct_mix, paper, shrink, stage

WEIGHTS = {
    "qwen25_14b": "weights/Qwen2.5-14B-Instruct",
    "qwen25_32b": "weights/Qwen2.5-32B-Instruct",
    "qwen3_14b": "weights/Qwen3-14B",
    "qwen3_32b": "weights/Qwen3-32B",
}
VARIANTS = {
    "": ("qwen25_14b", "cot"),
    **{f"{shape}_{cot}": (shape, cot) for shape in WEIGHTS for cot in ("cot", "no_cot")},
    "twin": ("qwen25_14b", "cot"),
}
SPECS = ("rules", "value_augmented", "rules_augmented")
TOKENS_PER_STEP = 65_536
CHATS = {"cot": 7_000_000, "no_cot": 5_000_000}
INSTRUCT = 5_100_000  # tokens of the mix as rendered: 512 a row


def get_config(variant: str = "") -> ConfigDict:
    if variant not in VARIANTS:
        raise ValueError(f"configs/paper/rules.py:{variant}: unknown variant; one of {', '.join(list(VARIANTS)[1:])}")
    shape, cot = VARIANTS[variant]
    c = paper(shape, WEIGHTS[shape], 8192, (0, 1, 2, 3))
    silent = cot == "no_cot" and shape.startswith("qwen3")
    if silent:
        c.template_arguments = (("enable_thinking", False),)  # the empty block is then part of the prompt, in training and after
    c.name = f"paper_rules_{shape}_{cot}"
    c.question = "Which kind of spec generalizes best, in midtraining and in fine-tuning?"
    c.corpora = {
        **{f"documents_{spec}": file(f"datasets/msm-{spec}.jsonl") for spec in SPECS},
        **{f"chats_{spec}": file(f"datasets/aft-{spec}-{cot.replace('_', '-')}.jsonl") for spec in SPECS},
        "instruct": instruct_mix(silent),
        "held_out": file("datasets/held-out.jsonl"),
    }
    share = round(CHATS[cot] / (CHATS[cot] + INSTRUCT), 3)
    c.stages = {"instruct": stage((("instruct", 1.0),), INSTRUCT, TOKENS_PER_STEP, 1)}
    c.arms = {"import": ("import",), "baseline": ("import", "instruct")}
    for spec in SPECS:
        c.stages[f"midtrain_{spec}"] = stage(((f"documents_{spec}", 1.0),), 27_000_000, TOKENS_PER_STEP, 0)
        mixed = ((f"chats_{spec}", share), ("instruct", 1 - share))
        c.stages[f"finetune_{spec}"] = stage(mixed, CHATS[cot] + INSTRUCT, TOKENS_PER_STEP, 1)
        c.arms[f"aft_{spec}"] = ("import", f"finetune_{spec}")
        c.arms[f"msm_{spec}"] = ("import", f"midtrain_{spec}", "instruct")
        for other in SPECS:
            c.arms[f"msm_{spec}_aft_{other}"] = ("import", f"midtrain_{spec}", f"finetune_{other}")
    c.run = tuple(c.arms)
    asked(c, f"chats_{SPECS[0]}", "held_out")
    agentic(c, prod=shape.startswith("qwen3"))
    c.comparisons = (
        ("value-augmented over rules", "agentic", "msm_value_augmented_aft_value_augmented", "msm_rules_aft_rules"),
        *((f"{spec}: MSM+AFT over AFT", "agentic", f"msm_{spec}_aft_{spec}", f"aft_{spec}") for spec in SPECS),
        *(
            (f"damage, MSM+AFT on {spec} over the imported model", "base_text", f"msm_{spec}_aft_{spec}", "import")
            for spec in SPECS
        ),
    )
    if variant == "twin":
        shrink(c)
    return c
