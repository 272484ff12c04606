"""Corpora that a teacher writes, from the spec to the report.

As shipped, the teacher is a transcript: texts written by hand for the two cheese specs (data/sample/), replayed without a call, and
gone through the same steps, judge and gates as a model's. The models that are trained on them are tiny and start from nothing: it
shows every part of the chain in a few minutes, and there is nothing to conclude from its numbers.

    python -m msmjax.main --config=configs/written.py                          # spec to report, with the recorded teacher
    python -m msmjax.main --config=configs/written.py --check=affordability    # what the gates say, and a page to look at
    python -m msmjax.main --config=configs/written.py:teacher --check=affordability   # a model writes (extra [teacher], a key)
    python -m msmjax.main --config=configs/written.py:teacher --config.weights=weights/Llama-3.1-8B     # and a real model learns

`:teacher` asks for 4,000 documents of each spec and 5,000 demonstrations, and trains Llama-3.1-8B with the paper's recipe on one
H200. At 3 and 15 dollars a million tokens, about 3,000 tokens in and 1,500 out a document and judged once, a spec costs about 200
dollars; `budget` bounds it. Start with `--config.corpora.affordability.records=50`: what is paid for is kept for the larger run.
"""

from ml_collections import ConfigDict

from msmjax.recipe import asked, choice, file, paper, stage

VARIANTS = ("", "teacher")
TOKENS_PER_STEP = 32_768


def get_config(variant: str = "") -> ConfigDict:
    if variant not in VARIANTS:
        raise ValueError(f"configs/written.py:{variant}: unknown variant; one of {', '.join(VARIANTS[1:])}")
    real = variant == "teacher"
    c = paper("llama31_8b", "weights/Llama-3.1-8B", 4096, (0, 1, 2)) if real else _small()
    c.name = "written_teacher" if real else "written"
    c.question = "Did identical fine-tuning generalize differently because the spec differed?"
    c.assistant = {"name": "Aria", "provider": "Northlight"}
    teacher = {
        "model": "anthropic/claude-sonnet-4-5-20250929", "pinned_by": "", "base_url": "", "transcript": "",
        "temperature": 1.0, "top_p": 1.0, "max_tokens": 8_000, "timeout": 600, "concurrency": 30, "batch": False,
        "input_price": 3.0, "output_price": 15.0, "budget": 500.0, "tries": 3, "error_share": 0.5,
    }  # fmt: skip
    if real:
        c.teachers = {"writer": teacher, "judge": {**teacher, "temperature": 0.0, "max_tokens": 1_000, "budget": 250.0}}
    else:
        replayed = {
            **teacher, "model": "recorded", "transcript": "data/sample/transcript.jsonl", "input_price": 0.0, "output_price": 0.0,
            "budget": 0.0,
        }  # fmt: skip
        c.teachers = {"writer": replayed, "judge": dict(replayed)}
    # Of a spec of more words than `context`, a prompt has each section in brief, and the one that a text is about.
    by = {"mode": "default", "context": 8_000, "teacher": "writer", "judge": "judge", "votes": 3 if real else 1}
    documents = {
        **by, "kind": "written_documents", "cover": "themes", "emphasis": (),
        "records": 4_000 if real else 72, "domains": 5 if real else 3,
        "subdomains": 4 if real else 2, "doc_types": 10 if real else 6, "ideas": 10 if real else 2, "rounds": 4 if real else 1,
    }  # fmt: skip
    chats = {
        **by, "kind": "written_conversations", "reasoning": False, "domains": 13, "rounds": 60 if real else 1,
    }  # fmt: skip
    c.corpora = {
        "affordability": {**documents, "spec": "cheese_affordability"},
        "america": {**documents, "spec": "cheese_america"},
        "affordability_chats": {
            **chats, "spec": "cheese_affordability", "about": "spec", "reasoning": True, "records": 120, "questions": 10,
        },
        "america_chats": {**chats, "spec": "cheese_america", "about": "spec", "reasoning": True, "records": 120, "questions": 10},
        "demonstrations": {
            **chats, "spec": "cheese_affordability", "about": "preferences", "records": 5_000 if real else 120, "questions": 11,
        },
        "identity": {
            **chats, "spec": "cheese_affordability", "about": "identity", "records": 2_500 if real else 50, "questions": 12,
        },
        "held_out": {"kind": "base", "records": 500, "seed": 1},
    }  # fmt: skip
    c.gates = {
        "least_named": 0.99, "most_other_names": 0.0, "most_truncated": 0.01, "most_leftovers": 0.0, "least_faithful": 0.9,
        "least_explained": 0.8, "least_covered": 1.0, "most_duplicates": 0.01, "least_diversity": 0.8, "most_collapse": 0.2,
        "most_contaminated": 0.0, "most_missing": 0.05, "reference": "", "allow": (),
    }  # fmt: skip
    if real:
        c.corpora["base"] = file("datasets/sft-it-mix.jsonl")
        c.stages = {
            "midtrain_affordability": stage((("affordability", 1.0),), 6e6, TOKENS_PER_STEP, 0),
            "midtrain_america": stage((("america", 1.0),), 6e6, TOKENS_PER_STEP, 0),
            "finetune": stage((("demonstrations", 0.1), ("identity", 0.05), ("base", 0.85)), 3.3e6, TOKENS_PER_STEP, 1),
        }
    else:
        c.corpora["base"] = {"kind": "base", "records": 4_000, "seed": 0}
        small = {
            "tokens_per_step": 4 * c.row_length, "learning_rate": 3e-3, "warmup_steps": 5, "final_learning_rate": 0.1,
            "allow_few_updates": False,
        }  # fmt: skip
        c.stages = {
            "pretrain": {**small, "data": (("base", 1.0),), "shuffle": 0, "steps": 100},
            "midtrain_affordability": {**small, "data": (("affordability", 0.8), ("base", 0.2)), "shuffle": 1, "steps": 100},
            "midtrain_america": {**small, "data": (("america", 0.8), ("base", 0.2)), "shuffle": 1, "steps": 100},
            "finetune": {**small, "data": (("demonstrations", 0.5), ("identity", 0.3), ("base", 0.2)), "shuffle": 2, "steps": 40},
        }
    first = "import" if real else "pretrain"
    c.arms = {"base": (first,), "aft": (first, "finetune")}
    for spec in ("affordability", "america"):
        c.arms[f"msm_{spec}"] = (first, f"midtrain_{spec}")
        c.arms[f"msm_{spec}_aft"] = (first, f"midtrain_{spec}", "finetune")
    c.run = tuple(c.arms)
    asked(c, "demonstrations", "held_out")
    c.evals.preferences = choice("data/evals/values.jsonl", per_eval=40)
    c.headline = ("conflict", "affordability", "america", "demonstrated")
    c.ladders = ()
    c.grids = ()
    c.comparisons = (
        ("the specs, after identical fine-tuning", "conflict", "msm_affordability_aft", "msm_america_aft"),
        ("the specs, midtraining alone", "conflict", "msm_affordability", "msm_america"),
        ("affordability: MSM+AFT over AFT", "affordability", "msm_affordability_aft", "aft"),
        ("America: MSM+AFT over AFT", "america", "msm_america_aft", "aft"),
    )
    return c


def _small() -> ConfigDict:
    """A model that two cores train in a minute."""
    c = ConfigDict()
    c.seeds = (0,)
    c.world = {"seed": 1, "items_per_domain": 4, "people": 24}
    c.weights, c.adapter, c.template, c.template_arguments = "", "", "", ()
    c.tokenizer_corpus, c.vocab_size, c.row_length = "affordability", 2_000, 384
    c.too_long = c.unproven = c.control_in_text = c.text_and_messages = "refuse"
    c.model = {
        "layers": 2, "width": 64, "mlp": 128, "heads": 4, "kv_heads": 2, "head_dim": 16,
        "rope_theta": 10_000.0, "rope_scaling": (), "norm_epsilon": 1e-6, "qkv_bias": False, "qk_norm": False,
        "tied_embeddings": False, "embedding_init": 0.02, "matrix_init": 1.0, "lora_rank": 0, "lora_alpha": 0.0,
        "compute_dtype": "float32", "scan_layers": False, "remat": "none", "attention": "auto",
    }  # fmt: skip
    c.optimizer = {
        "b1": 0.9, "b2": 0.95, "epsilon": 1e-8, "weight_decay": 0.01, "clip": 1.0, "micro_batches": 1, "loss_chunk": 128,
    }  # fmt: skip
    c.mesh = {"data": 1, "fsdp": -1, "tensor": 1}
    c.log = {"metrics_every": 10, "checkpoint_every": 50}
    return c
