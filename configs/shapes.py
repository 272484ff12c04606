"""The model shapes of the paper, to plan for: what does training them take, full or LoRA, and on which machine does it fit?

Only for `--plan`: the corpora named here are the microworld's, which has nothing to teach models of this size, and weights are
not read (configs/paper does). Stages are as long as replications of the paper report them: steps of 65,536 tokens, 42 million
tokens of midtraining, 10 million of fine-tuning. `lora` is the paper's adapter (r 64, alpha 128) on a frozen base.

    python -m msmjax.main --config=configs/shapes.py:qwen25_14b_4k --plan --device=h100:8 --price=2.5
    python -m msmjax.main --config=configs/shapes.py:llama31_8b_8k_lora --plan --topology=v5p:2x2x1
"""

from ml_collections import ConfigDict

from msmjax import recipe
from msmjax.model.shapes import SHAPES

LENGTHS = {"4k": 4096, "8k": 8192}
VARIANTS = ("", *(f"{shape}_{length}{lora}" for shape in SHAPES for length in LENGTHS for lora in ("", "_lora")))


def get_config(variant: str = "") -> ConfigDict:
    if variant not in VARIANTS:
        raise ValueError(f"configs/shapes.py:{variant}: unknown variant; one of {', '.join(VARIANTS[1:])}")
    variant = variant or VARIANTS[1]
    lora = variant.endswith("_lora")
    shape, _, length = variant.removesuffix("_lora").rpartition("_")
    c = ConfigDict()
    c.name = variant
    c.question = "What would it take?"
    c.seeds = (0,)
    c.run = ("msm_aft",)
    c.arms = {"msm_aft": (*(("import",) if lora else ()), "midtrain", "finetune")}

    c.assistant = {"name": "Aria", "provider": "Northlight"}
    c.world = {"seed": 0, "items_per_domain": 16, "people": 432}
    c.corpora = {
        "base": {"kind": "base", "records": 2_000, "seed": 0},
        "spec": recipe.about("cheese_affordability"),
        "chats": recipe.demonstrations("cheese_affordability"),
    }
    c.teachers = {}
    c.gates = {}
    c.weights = "weights" if lora else ""
    c.adapter = ""
    c.template = ""
    c.template_arguments = ()
    c.tokenizer_corpus = "" if lora else "base"
    model = dict(SHAPES[shape])
    c.vocab_size = model.pop("vocab")
    c.row_length = LENGTHS[length]
    c.too_long = "refuse"
    c.text_and_messages = "refuse"
    c.unproven = "refuse"
    c.control_in_text = "refuse"
    c.model = {
        **model, "embedding_init": 0.02, "matrix_init": 1.0,
        "lora_rank": 64 if lora else 0, "lora_alpha": 128.0 if lora else 0.0,
        "compute_dtype": "bfloat16", "scan_layers": True, "remat": "full", "attention": "auto",
    }  # fmt: skip
    c.optimizer = {
        "b1": 0.9, "b2": 0.95, "epsilon": 1e-8, "weight_decay": 0.01, "clip": 1.0, "micro_batches": 1, "loss_chunk": 512,
    }  # fmt: skip
    c.mesh = {"data": 1, "fsdp": -1, "tensor": 1}
    c.log = {"metrics_every": 10, "checkpoint_every": 100}
    stage = {
        "tokens_per_step": 65_536, "learning_rate": 1e-4 if lora else 1e-5, "final_learning_rate": 0.1,
        "allow_few_updates": False,
    }  # fmt: skip
    c.stages = {
        "midtrain": {**stage, "data": (("spec", 0.5), ("base", 0.5)), "shuffle": 0, "steps": 640, "warmup_steps": 32},
        "finetune": {**stage, "data": (("chats", 1.0),), "shuffle": 1, "steps": 160, "warmup_steps": 8},
    }
    c.prompt = {"like": "chats", "system": "{chats}", "opening": "{chats}"}
    c.evals = {
        "microworld": {"kind": "microworld", "chats": "chats", "split": "test", "per_eval": 120, "seed": 0},
        "base_text": {"kind": "base_text", "corpus": "base"},
    }
    c.influence = recipe.INFLUENCE
    c.headline = ("conflict",)
    c.ladders = ()
    c.grids = ()
    c.comparisons = ()
    return c
