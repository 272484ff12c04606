"""The model shapes of the paper, to plan for: what does full fine-tuning of them take, and on which machine does it fit?

Only for `--plan`: the corpora named here are the microworld's, which has nothing to teach models of this size, and their
published weights and tokenizers are not read. Shapes are those of the models' published configuration files; Llama's scaling of
its rotary frequencies is left out, since it changes neither bytes nor FLOPs. Stages are as long as replications of the paper
report them: steps of 65,536 tokens, 42 million tokens of midtraining, 10 million of fine-tuning.

    python -m msmjax.main --config=configs/shapes.py:qwen25_14b_4k --plan --device=h100:8 --price=2.5
    python -m msmjax.main --config=configs/shapes.py:llama31_8b_8k --plan --topology=v5p:2x2x2 --config.mesh.tensor=2
"""

from ml_collections import ConfigDict

COMMON = {
    "head_dim": 128, "kv_heads": 8, "rope_theta": 1e6, "rope_scaling": (), "norm_epsilon": 1e-6, "qkv_bias": False,
    "qk_norm": False, "tied_embeddings": False, "embedding_init": 0.02, "matrix_init": 1.0, "lora_rank": 0, "lora_alpha": 0.0,
    "compute_dtype": "bfloat16", "scan_layers": True, "remat": "full",
}  # fmt: skip
# name -> (vocabulary, what differs from COMMON)
SHAPES = {
    "llama31_8b": (128_256, {"layers": 32, "width": 4096, "mlp": 14_336, "heads": 32, "rope_theta": 5e5, "norm_epsilon": 1e-5}),
    "qwen25_14b": (152_064, {"layers": 48, "width": 5120, "mlp": 13_824, "heads": 40, "qkv_bias": True}),
    "qwen25_32b": (152_064, {"layers": 64, "width": 5120, "mlp": 27_648, "heads": 40, "qkv_bias": True}),
    "qwen3_32b": (151_936, {"layers": 64, "width": 5120, "mlp": 25_600, "heads": 64, "qk_norm": True}),
}
LENGTHS = {"4k": 4096, "8k": 8192}
VARIANTS = ("", *(f"{shape}_{length}" for shape in SHAPES for length in LENGTHS))


def get_config(variant: str = "") -> ConfigDict:
    if variant not in VARIANTS:
        raise ValueError(f"configs/shapes.py:{variant}: unknown variant; one of {', '.join(VARIANTS[1:])}")
    shape, _, length = (variant or VARIANTS[1]).rpartition("_")
    c = ConfigDict()
    c.name = f"{shape}_{length}"
    c.question = "What would it take?"
    c.seeds = (0,)
    c.run = ("msm_aft",)
    c.arms = {"msm_aft": ("midtrain", "finetune")}

    c.assistant = {"name": "Aria", "provider": "Northlight"}
    c.world = {"seed": 0, "items_per_domain": 16, "people": 432}
    c.corpora = {
        "base": {"kind": "base", "records": 2_000, "seed": 0},
        "spec": {"kind": "spec", "spec": "cheese_affordability", "break_link": False, "records": 1_500, "seed": 0},
        "chats": {"kind": "demonstrations", "spec": "cheese_affordability", "records": 2_000, "seed": 0},
    }
    c.tokenizer_corpus = "base"
    c.vocab_size, model = SHAPES[shape]
    c.row_length = LENGTHS[length]
    c.model = {**COMMON, **model}
    c.optimizer = {
        "b1": 0.9, "b2": 0.95, "epsilon": 1e-8, "weight_decay": 0.01, "clip": 1.0, "micro_batches": 1, "loss_chunk": 512,
    }  # fmt: skip
    c.mesh = {"data": 1, "fsdp": -1, "tensor": 1}
    c.log = {"metrics_every": 10, "checkpoint_every": 100}
    stage = {
        "batch_rows": 65_536 // c.row_length, "learning_rate": 1e-5, "final_learning_rate": 0.1, "allow_few_updates": False,
    }  # fmt: skip
    c.stages = {
        "midtrain": {**stage, "data": (("spec", 0.5), ("base", 0.5)), "steps": 640, "warmup_steps": 32},
        "finetune": {**stage, "data": (("chats", 1.0),), "steps": 160, "warmup_steps": 8},
    }
    c.evals = {
        "split": "test", "per_eval": 120, "seed": 0, "spec_corpus": "chats", "base_text": "base", "headline": ("conflict",),
    }  # fmt: skip
    c.comparisons = ()
    return c
