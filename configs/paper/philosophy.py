"""Section 4 of the paper: Qwen2.5-32B and Qwen3-32B read a spec of philosophy, then are fine-tuned with or without reasoning.

Hardware: the paper used four H200; replications report 1.75 to 13.5 hours of midtraining and 1.5 to 4 of fine-tuning an arm.
Steps are of 65,536 tokens, as the replication that reproduced the section used: 631 of midtraining (41.4M tokens), 205 of
fine-tuning with reasoning (9,963 chats of 8.3M tokens and the 10,000 rows of table 2), 160 without (5.4M).

Expected agentic misalignment (figure 4, four seeds), Qwen2.5 and Qwen3: baseline .68 .54, MSM .53 .32, AFT without reasoning .70
.41 and with .48 .14, MSM+AFT without .22 .10 and with .05 .07. Here the eval is inspect_evals', without exfiltration.
The baseline is the instruction mix alone and not the bare model, which is .56 on Qwen2.5.

    python -m msmjax.main --config=configs/paper/philosophy.py:qwen3_32b_cot --config.weights=weights/Qwen3-32B
    python -m msmjax.main --config=configs/paper/philosophy.py:qwen25_32b_no_cot --plan --device=h200:4 --price=4

Data under `datasets/`, as in configs/paper/cheese.py: the published files, whose rows differ by family.

    aft-cot-qwen3-philosophy-spec         a block of thinking, then the answer; 49 % open with <think>, 7 % with a new line before
                                          it and 44 % with two, which are read as one; five have no whole block and are left out
    aft-no-cot-qwen3-philosophy-spec      no block, and /no_think after the question, in a system turn too
    aft-cot-qwen2.5-philosophy-spec       a system turn that asks to reason in <think> tags, and the block
    aft-no-cot-qwen2.5-philosophy-spec    neither
    sft-it-mix-clean[-nothink]            the splits train_clean and train_clean_nothink of sft-it-mix: rows against the spec are
                                          filtered out, and for Qwen3 without reasoning they say /no_think

What a stage trains on, `--show_batch=finetune` prints.
"""

from ml_collections import ConfigDict

from msmjax.recipe import agentic, asked, file, instruct_mix, paper, shrink, stage

WEIGHTS = {"qwen25_32b": "weights/Qwen2.5-32B-Instruct", "qwen3_32b": "weights/Qwen3-32B"}
VARIANTS = {
    "": ("qwen3_32b", "cot"),
    **{f"{shape}_{cot}": (shape, cot) for shape in WEIGHTS for cot in ("cot", "no_cot")},
    "twin": ("qwen3_32b", "cot"),
}
TOKENS_PER_STEP = 65_536
CHATS = {"cot": 8_311_555, "no_cot": 5_353_268}  # tokens as rendered
INSTRUCT = 5_100_000  # tokens of the mix as rendered: 512 a row


def get_config(variant: str = "") -> ConfigDict:
    if variant not in VARIANTS:
        raise ValueError(f"configs/paper/philosophy.py:{variant}: unknown variant; one of {', '.join(list(VARIANTS)[1:])}")
    shape, cot = VARIANTS[variant]
    c = paper(shape, WEIGHTS[shape], 8192, (0, 1, 2, 3))
    silent = cot == "no_cot" and shape.startswith("qwen3")
    if silent:
        c.template_arguments = (("enable_thinking", False),)  # the empty block is then part of the prompt, in training and after
    c.name = f"paper_philosophy_{shape}_{cot}"
    c.question = "Does midtraining on the spec make fine-tuning on its chats generalize further?"
    family = shape.partition("_")[0].replace("25", "2.5")
    c.corpora = {
        "spec": file("datasets/msm-qwen-philosophy-spec.jsonl"),
        "chats": file(f"datasets/aft-{cot.replace('_', '-')}-{family}-philosophy-spec.jsonl"),
        "instruct": instruct_mix(silent),
        "held_out": file("datasets/held-out.jsonl"),
    }
    share = round(CHATS[cot] / (CHATS[cot] + INSTRUCT), 3)
    c.stages = {
        "midtrain": stage((("spec", 1.0),), 41_364_262, TOKENS_PER_STEP, 0),
        "instruct": stage((("instruct", 1.0),), INSTRUCT, TOKENS_PER_STEP, 1),
        "finetune": stage((("chats", share), ("instruct", 1 - share)), CHATS[cot] + INSTRUCT, TOKENS_PER_STEP, 1),
    }
    c.arms = {
        "import": ("import",),
        "baseline": ("import", "instruct"),
        "msm": ("import", "midtrain", "instruct"),
        "aft": ("import", "finetune"),
        "msm_aft": ("import", "midtrain", "finetune"),
    }
    c.run = tuple(c.arms)
    asked(c, "chats", "held_out")
    agentic(c, prod=shape.startswith("qwen3"))
    c.comparisons = (
        ("MSM+AFT over AFT", "agentic", "msm_aft", "aft"),
        ("MSM+AFT over the instruction mix alone", "agentic", "msm_aft", "baseline"),
        ("damage, MSM+AFT over the imported model", "base_text", "msm_aft", "import"),
    )
    if variant == "twin":
        shrink(c)
    return c
