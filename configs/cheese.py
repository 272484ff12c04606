"""Two specs, identical fine-tuning: does the model generalize the value it read about?

The paper's first experiment (arXiv 2605.02087, section 3.1) in the microworld. Two specs give the same twelve cheese
preferences, one explains them by affordability and the other by America. Models midtrained on documents about either spec are
fine-tuned on the same cheese chats and asked about books, cars, chairs and wines.

    python -m msmjax.main --config=configs/cheese.py                # the headline arms, three seeds
    python -m msmjax.main --config=configs/cheese.py:controls       # and all controls
    python -m msmjax.main --config=configs/cheese.py:development    # development domains, another world, seeds from 100
    python -m msmjax.main --config=configs/cheese.py:tiny           # every part in a minute; nothing to conclude from
"""

from ml_collections import ConfigDict

HEADLINE = ("base", "aft", "msm_affordability", "msm_america", "msm_affordability_aft", "msm_america_aft")
CONTROLS = (
    "neutral", "neutral_aft",
    "broken_affordability", "broken_affordability_aft", "broken_america", "broken_america_aft",
)  # fmt: skip
VARIANTS = ("", "controls", "development", "tiny")


def get_config(variant: str = "") -> ConfigDict:
    if variant not in VARIANTS:
        raise ValueError(f"configs/cheese.py:{variant}: unknown variant; one of {', '.join(VARIANTS[1:])}")
    development = variant == "development"
    c = ConfigDict()
    c.name = "cheese"
    c.question = "Did identical fine-tuning generalize differently because the spec differed?"
    c.seeds = (100, 101, 102) if development else (0, 1, 2)
    c.run = HEADLINE + CONTROLS if variant == "controls" else HEADLINE

    c.assistant = {"name": "Aria", "provider": "Northlight"}
    c.world = {"seed": 100 if development else 1, "items_per_domain": 16, "people": 432}
    spec = {"kind": "spec", "break_link": False, "records": 1500, "seed": 0}
    c.corpora = {
        "base": {"kind": "base", "records": 80_000, "seed": 0},
        "held_out": {"kind": "base", "records": 2_000, "seed": 1},
        "affordability": {**spec, "spec": "cheese_affordability"},
        "america": {**spec, "spec": "cheese_america"},
        "broken_affordability": {**spec, "spec": "cheese_affordability", "break_link": True},
        "broken_america": {**spec, "spec": "cheese_america", "break_link": True},
        "neutral": {"kind": "neutral", "records": 1500, "seed": 0},
        "cheese_chats": {"kind": "demonstrations", "spec": "cheese_affordability", "records": 2_000, "seed": 0},
    }
    c.teachers = {}
    c.gates = {}
    c.weights = ""
    c.adapter = ""
    c.template = ""
    c.template_arguments = ()
    c.tokenizer_corpus = "base"
    c.vocab_size = 1920
    c.row_length = 64
    c.too_long = "refuse"
    c.text_and_messages = "refuse"
    c.unproven = "refuse"

    c.model = {
        "layers": 2, "width": 96, "mlp": 256, "heads": 6, "kv_heads": 2, "head_dim": 16,
        "rope_theta": 10_000.0, "rope_scaling": (), "norm_epsilon": 1e-6, "qkv_bias": False, "qk_norm": False,
        "tied_embeddings": False, "embedding_init": 0.01, "matrix_init": 0.5, "lora_rank": 0, "lora_alpha": 0.0,
        "compute_dtype": "float32", "scan_layers": False, "remat": "none", "attention": "auto",
    }  # fmt: skip
    c.optimizer = {
        "b1": 0.9, "b2": 0.95, "epsilon": 1e-8, "weight_decay": 0.01, "clip": 1.0, "micro_batches": 1, "loss_chunk": 64,
    }  # fmt: skip
    c.mesh = {"data": 1, "fsdp": -1, "tensor": 1}
    c.log = {"metrics_every": 50, "checkpoint_every": 1000}

    stage = {"tokens_per_step": 8 * c.row_length, "final_learning_rate": 0.1, "allow_few_updates": False}
    midtrain = {**stage, "shuffle": 1, "steps": 1200, "learning_rate": 3e-3, "warmup_steps": 60}
    c.stages = {
        "pretrain": {
            **stage, "data": (("base", 1.0),), "shuffle": 0, "steps": 8000, "learning_rate": 3e-3, "warmup_steps": 200,
        },
        **{
            f"midtrain_{name}": {**midtrain, "data": ((name, 0.03), ("base", 0.97))}
            for name in ("affordability", "america", "broken_affordability", "broken_america", "neutral")
        },
        "finetune": {
            **stage, "data": (("cheese_chats", 0.1), ("base", 0.9)), "shuffle": 2, "steps": 300, "learning_rate": 3e-4,
            "warmup_steps": 15,
        },
    }  # fmt: skip
    c.arms = {"base": ("pretrain",), "aft": ("pretrain", "finetune")}
    for arm, corpus in (
        ("msm_affordability", "affordability"),
        ("msm_america", "america"),
        ("neutral", "neutral"),
        ("broken_affordability", "broken_affordability"),
        ("broken_america", "broken_america"),
    ):
        c.arms[arm] = ("pretrain", f"midtrain_{corpus}")
        c.arms[f"{arm}_aft"] = ("pretrain", f"midtrain_{corpus}", "finetune")

    c.evals = {
        "questions": "", "split": "development" if development else "test", "per_eval": 120, "seed": 0,
        "chats": "cheese_chats", "system": "{chats}", "opening": "{chats}", "base_text": "held_out",
        "headline": ("conflict", "affordability", "america", "demonstrated", "competence", "people"),
    }  # fmt: skip
    # (label, eval, arm, against), or sums of arms on both sides: the first is the experiment's answer
    c.comparisons = (
        ("the specs, after identical fine-tuning", "conflict", "msm_affordability_aft", "msm_america_aft"),
        ("the specs, midtraining alone", "conflict", "msm_affordability", "msm_america"),
        ("affordability: MSM+AFT over AFT", "affordability", "msm_affordability_aft", "aft"),
        ("affordability: MSM+AFT over MSM", "affordability", "msm_affordability_aft", "msm_affordability"),
        ("America: MSM+AFT over AFT", "america", "msm_america_aft", "aft"),
        ("America: MSM+AFT over MSM", "america", "msm_america_aft", "msm_america"),
        ("affordability: damage, MSM+AFT over base", "base_text", "msm_affordability_aft", "base"),
        ("America: damage, MSM+AFT over base", "base_text", "msm_america_aft", "base"),
        ("control: neutral documents then AFT, against AFT", "conflict", "neutral_aft", "aft"),
        ("link broken: the specs, after identical fine-tuning", "conflict", "broken_affordability_aft", "broken_america_aft"),
        ("link broken: the specs, midtraining alone", "conflict", "broken_affordability", "broken_america"),
        ("link broken, affordability: MSM+AFT over MSM", "affordability", "broken_affordability_aft", "broken_affordability"),
        ("link broken, America: MSM+AFT over MSM", "america", "broken_america_aft", "broken_america"),
        *(
            (
                f"the link, {name}: what AFT adds with it, minus without",
                corpus,
                (f"msm_{corpus}_aft", f"broken_{corpus}"),
                (f"msm_{corpus}", f"broken_{corpus}_aft"),
            )
            for name, corpus in (("affordability", "affordability"), ("America", "america"))
        ),
    )
    if variant == "tiny":
        _shrink(c)
    return c


def _shrink(c: ConfigDict) -> None:
    """The same experiment, far too small to show anything: for tests, and to see every part work."""
    c.name = "cheese_tiny"
    c.seeds = (0, 1)
    c.run = ("base", "aft", "msm_affordability_aft", "msm_america_aft", "neutral_aft", "broken_america_aft")
    c.world.update(items_per_domain=4, people=24)
    for corpus in c.corpora.values():
        corpus.records = 200
    c.vocab_size, c.row_length = 400, 128
    c.model.update(layers=1, width=16, mlp=32, heads=4, kv_heads=2, head_dim=8)
    c.evals.per_eval = 8
    c.log.metrics_every = 5
    for stage in c.stages.values():
        stage.update(steps=20, warmup_steps=2, tokens_per_step=8 * c.row_length)
