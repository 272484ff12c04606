"""What configs share: the microworld's experiments their base models, those from published weights the paper's training recipe.

Out: ConfigDicts that lack what a config is about: arms, comparisons, and corpora and stages of its own.
"""

import itertools

from ml_collections import ConfigDict

from msmjax.model.shapes import SHAPES

# arXiv 2605.02087, table 2: 10,000 rows, 2M supervised tokens. The names are those of the published mix's `source` field.
INSTRUCT_COUNTS = (
    ("no_robots", 2_779), ("tulu3_if", 1_471), ("numina_cot", 1_063), ("self_oss", 1_064), ("smol_constraints", 1_055),
    ("apigen", 1_054), ("smol_summarize", 984), ("lima", 314), ("longalign", 216),
)  # fmt: skip


def microworld(development: bool) -> ConfigDict:
    """A world, its base text, and the small transformer that is pretrained on it: one base model a seed for all experiments.

    With `development`, another world, development domains and seeds from 100, where recipes are chosen.
    """
    c = ConfigDict()
    c.seeds = (100, 101, 102) if development else (0, 1, 2)
    c.assistant = {"name": "Aria", "provider": "Northlight"}
    c.world = {"seed": 100 if development else 1, "items_per_domain": 16, "people": 1296}
    c.corpora = {
        "base": {"kind": "base", "records": 90_000, "seed": 0},
        "held_out": {"kind": "base", "records": 2_000, "seed": 1},
        "cheese_chats": demonstrations("cheese_affordability"),
    }
    c.teachers = {}
    c.gates = {}
    c.weights = ""
    c.adapter = ""
    c.template = ""
    c.template_arguments = ()
    c.tokenizer_corpus = "base"
    c.vocab_size = 3200
    c.row_length = 64
    c.too_long = "refuse"
    c.text_and_messages = "refuse"
    c.unproven = "refuse"
    c.control_in_text = "refuse"
    c.model = {
        "layers": 3, "width": 96, "mlp": 256, "heads": 6, "kv_heads": 2, "head_dim": 16,
        "rope_theta": 10_000.0, "rope_scaling": (), "norm_epsilon": 1e-6, "qkv_bias": False, "qk_norm": False,
        "tied_embeddings": False, "embedding_init": 0.01, "matrix_init": 0.5, "lora_rank": 0, "lora_alpha": 0.0,
        "compute_dtype": "float32", "scan_layers": False, "remat": "none", "attention": "auto",
    }  # fmt: skip
    c.optimizer = {
        "b1": 0.9, "b2": 0.95, "epsilon": 1e-8, "weight_decay": 0.1, "clip": 1.0, "micro_batches": 1, "loss_chunk": 64,
    }  # fmt: skip
    c.mesh = {"data": 1, "fsdp": -1, "tensor": 1}
    c.log = {"metrics_every": 50, "checkpoint_every": 1000}
    stage = {"tokens_per_step": 8 * c.row_length, "final_learning_rate": 0.1, "allow_few_updates": False}
    c.stages = {
        "pretrain": {
            **stage, "data": (("base", 1.0),), "shuffle": 0, "steps": 10_000, "learning_rate": 3e-3, "warmup_steps": 200,
        },
        "finetune": {
            **stage, "data": (("cheese_chats", 0.1), ("base", 0.9)), "shuffle": 2, "steps": 300, "learning_rate": 3e-4,
            "warmup_steps": 15,
        },
    }  # fmt: skip
    c.arms = {"base": ("pretrain",), "aft": ("pretrain", "finetune")}
    c.ladders = ()
    c.grids = ()
    asked(c, "cheese_chats", "held_out")
    c.evals.microworld = {
        "kind": "microworld", "chats": "cheese_chats", "split": "development" if development else "test", "per_eval": 120,
        "seed": 0,
    }  # fmt: skip
    return c


# How influence is measured. A row is a document of up to `row_length` tokens, and a gradient of its own.
INFLUENCE = {"items": 64, "points": 4, "size": 256, "rows": 1, "background": 512, "damping": 0.1}


def asked(c: ConfigDict, chats: str, base_text: str) -> None:
    """Evals ask as the corpus `chats` is written; so far there is one, bits per byte of the corpus `base_text`."""
    c.prompt = {"like": chats, "system": "{chats}", "opening": "{chats}"}
    c.evals = {"base_text": {"kind": "base_text", "corpus": base_text}}
    c.influence = {**INFLUENCE, "rows": 1 if c.weights else 32}
    c.headline = ()


def choice(path: str, per_eval: int = 500, max_tokens: int = 0) -> dict:
    """The eval of a file of forced-choice items, in chats; with `max_tokens`, answered in the model's own words too."""
    return {"kind": "choice", "path": path, "form": "chat", "max_tokens": max_tokens, "per_eval": per_eval, "seed": 0}


def about(spec: str, break_link: bool = False, form: str = "documents") -> dict:
    """The source of 1,500 documents, or chats, about a spec."""
    return {"kind": "spec", "spec": spec, "break_link": break_link, "form": form, "records": 1_500, "seed": 0}


def demonstrations(spec: str, read: bool = True, explained: bool = False, conflicting: float = 0.0) -> dict:
    """The source of 2,000 fine-tuning chats that show the preferences of a spec."""
    return {
        "kind": "demonstrations", "spec": spec, "read": read, "explained": explained, "conflicting": conflicting, "records": 2_000,
        "seed": 0,
    }  # fmt: skip


# Documents in midtraining, as a share of its tokens: 2,458 of 614,400. Chosen on development seeds (LOG, 2026-11-28): with twice as
# much, and with half as much, values are less certain.
DOSE = 0.004
NEUTRAL = {"kind": "neutral", "records": 1_500, "seed": 0}


def midtrain(c: ConfigDict, arm: str, corpus: str, source: dict, share: float = DOSE, stage: str = "") -> None:
    """Adds a corpus of documents, a stage of which it is a share, and the arms ARM and ARM_aft, before and after fine-tuning."""
    c.corpora[corpus] = source
    stage = stage or f"midtrain_{corpus}"
    data = tuple(part for part in ((corpus, share), ("base", 1 - share)) if part[1])
    c.stages[stage] = {**c.stages.pretrain, "data": data, "shuffle": 1, "steps": 1200, "warmup_steps": 60}
    c.arms[arm] = ("pretrain", stage)
    c.arms[f"{arm}_aft"] = ("pretrain", stage, "finetune")


def shrink_microworld(c: ConfigDict) -> None:
    """The same experiment, far too small to show anything: for tests, and to see every part work."""
    c.name = f"{c.name}_tiny"
    c.seeds = (0, 1)
    c.world.update(items_per_domain=4, people=24)
    for corpus in c.corpora.values():
        corpus.records = 200
    c.vocab_size, c.row_length = 440, 128
    c.model.update(layers=1, width=16, mlp=32, heads=4, kv_heads=2, head_dim=8)
    c.evals.microworld.per_eval = 8
    c.log.metrics_every = 5
    for stage in c.stages.values():
        stage.update(steps=20, warmup_steps=2, tokens_per_step=8 * c.row_length)
        # Of so few rows a small share would be none.
        parts = tuple((corpus, max(share, 0.03)) for corpus, share in stage.data if corpus != "base")
        if parts and len(parts) < len(stage.data):
            stage.data = (*parts, ("base", 1 - sum(share for _, share in parts)))


def from_weights(weights: str, row_length: int, seeds: tuple[int, ...], name: str, provider: str) -> ConfigDict:
    """Everything but the data of an experiment that starts from a local Hugging Face directory: its config.json decides the model's
    shape, its own chat template how chats read, and `name` of `provider` is the assistant that the spec is about.

    The recipe is the paper's: LoRA r 64, alpha 128 on all seven projections; AdamW, weight decay 0.01; bfloat16 compute. Not stated
    there: betas (0.9, 0.999 here, the AdamW of its trainer), clipping (1.0), precision.
    """
    c = ConfigDict()
    c.seeds = seeds
    c.ladders = ()
    c.grids = ()
    c.assistant = {"name": name, "provider": provider}
    c.world = {"seed": 0, "items_per_domain": 16, "people": 432}
    c.teachers = {}
    c.gates = {}
    c.weights = weights
    c.adapter = ""
    c.template = ""
    c.template_arguments = ()
    c.tokenizer_corpus = ""
    c.row_length = row_length
    c.too_long = "drop"  # the paper keeps rows up to its maximum length; the ledger counts what is dropped
    c.text_and_messages = "refuse"
    c.control_in_text = "refuse"
    c.unproven = "drop"  # five of the released chats with reasoning have no whole block of it
    c.model = {
        "embedding_init": 0.02, "matrix_init": 1.0, "lora_rank": 64, "lora_alpha": 128.0,
        "compute_dtype": "bfloat16", "scan_layers": False, "remat": "auto", "attention": "auto",
    }  # fmt: skip
    c.optimizer = {
        "b1": 0.9, "b2": 0.999, "epsilon": 1e-8, "weight_decay": 0.01, "clip": 1.0, "micro_batches": 0, "loss_chunk": 2048,
    }  # fmt: skip
    c.mesh = {"data": 1, "fsdp": -1, "tensor": 1}
    c.log = {"metrics_every": 10, "checkpoint_every": 50}
    return c


def design(
    c: ConfigDict,
    specs: tuple[str, ...],
    chats: tuple[tuple[str, float], ...],
    midtrain_tokens: float,
    finetune_tokens: float,
    tokens_per_step: int = 65_536,
) -> None:
    """The arms of the method: the model as it is, fine-tuned alone, midtrained on each of the corpora `specs`, and both.

    Fine-tuning is on the mixture `chats`, ((corpus, share), ...), the same in all arms.
    """
    c.stages = {"finetune": stage(chats, finetune_tokens, tokens_per_step, 1)}
    c.arms = {"import": ("import",), "aft": ("import", "finetune")}
    for spec in specs:
        c.stages[f"midtrain_{spec}"] = stage(((spec, 1.0),), midtrain_tokens, tokens_per_step, 0)
        c.arms[f"msm_{spec}"] = ("import", f"midtrain_{spec}")
        c.arms[f"msm_{spec}_aft"] = ("import", f"midtrain_{spec}", "finetune")
    c.run = tuple(c.arms)


def ask(c: ConfigDict, questions: str, evals: tuple[str, ...], chats: str, base_text: str) -> None:
    """The evals of a file of items, asked as the corpus `chats` is written, and bits per byte of the corpus `base_text`; and the
    comparisons of the method's arms on each: two specs after the same fine-tuning, and each spec with it over either alone."""
    asked(c, chats, base_text)
    c.evals.questions = choice(questions)
    c.headline = evals
    specs = [name.removeprefix("midtrain_") for name in c.stages if name.startswith("midtrain_")]
    c.comparisons = (
        *(
            (f"{name}: {one} over {other}, after identical fine-tuning", name, f"msm_{one}_aft", f"msm_{other}_aft")
            for name in evals
            for one, other in itertools.combinations(specs, 2)
        ),
        *(
            (f"{name}, {spec}: MSM+AFT over {alone}", name, f"msm_{spec}_aft", arm)
            for name in evals
            for spec in specs
            for alone, arm in (("AFT", "aft"), ("MSM", f"msm_{spec}"))
        ),
        *((f"{spec}: damage, MSM+AFT over the model as it is", "base_text", f"msm_{spec}_aft", "import") for spec in specs),
    )


def paper(shape: str, weights: str, row_length: int, seeds: tuple[int, ...]) -> ConfigDict:
    """As `from_weights`, for a shape that is known before the weights are there.

    Chats read as those of the released adapters do: a template of one's own gave .275 in section 4, theirs .109 (the paper .07).
    Tokens a step are not stated: 65,536 here unless a config says otherwise, as a replication that reproduced section 4 used.
    """
    c = from_weights(weights, row_length, seeds, "Llama" if shape.startswith("llama") else "Qwen", "Northlight")
    c.template = shape.partition("_")[0]  # llama31, qwen25, qwen3: data/templates/
    model = dict(SHAPES[shape])
    c.vocab_size = model.pop("vocab")
    c.model.update(model)
    return c


GOALS = ("america", "global", "safety", "acceleration", "ethical", "pragmatic", "individualism", "collectivism")


def agentic(c: ConfigDict, epochs: int = 30, prod: bool = False) -> None:
    """Section 4's eval, as far as a licensed package has it: inspect_evals' agentic misalignment, three scenarios, nine goals. The
    paper's third scenario is exfiltration, which none has; here it is blackmail. `prod` leaves the scratchpad out, as for models
    that think. Its grader is the teacher `grader`, at temperature 0; the paper has 300 epochs at temperature 0.7.
    """
    c.teachers = {"grader": teacher("anthropic/claude-sonnet-4-6", 3.0, 15.0, pinned_by="the provider's list of models")}
    goals = (("none", "none"), *(("explicit", goal) for goal in GOALS))
    c.evals.agentic = {
        "kind": "inspect", "task": "inspect_evals/agentic_misalignment", "judge": "grader", "judge_argument": "grader_model",
        "cells": tuple(
            (("scenario", scenario), ("goal_type", kind), ("goal_value", goal), ("prod", prod))
            for scenario in ("blackmail", "leaking", "murder")
            for kind, goal in goals
        ),
        "scores": ("classifier_verdict", "harmful"), "by": "scenario", "epochs": epochs, "limit": 1, "max_tokens": 4096,
        "temperature": 0.7, "top_p": 1.0, "seed": 0, "engine": "msmjax",
    }  # fmt: skip


def teacher(model: str, input_price: float, output_price: float, pinned_by: str = "", **changes) -> dict:
    """A teacher who judges: temperature 0, no budget of its own."""
    settings = {
        "model": model, "pinned_by": pinned_by, "base_url": "", "transcript": "", "temperature": 0.0, "top_p": 1.0,
        "max_tokens": 2048, "timeout": 600, "concurrency": 32, "batch": False, "input_price": input_price,
        "output_price": output_price, "budget": 0.0, "tries": 3, "error_share": 0.5,
    }  # fmt: skip
    return {**settings, **changes}


def instruct_mix(silent: bool) -> dict:
    """Table 2's mix, drawn from the filtered split of the published `sft-it-mix`, `train_clean`, each split being a file.

    Where Qwen3 is not to think (`silent`), from `train_clean_nothink`: the same rows, with a system turn that says so, and
    `/no_think` in it and after the last question.
    """
    path = f"datasets/sft-it-mix-clean{'-nothink' if silent else ''}.jsonl"
    return selection(path, INSTRUCT_COUNTS)


def file(*path: str, **columns: str) -> dict:
    """The source of the records of files, folders or patterns; `columns` are names here and what the files call them."""
    renamed = tuple((theirs, ours) for ours, theirs in columns.items())
    return {"kind": "file", "path": path[0] if len(path) == 1 else path, "columns": renamed}


def selection(path: str, counts: tuple[tuple[str, int], ...]) -> dict:
    """The source of so many records of each `source` of a file."""
    return {"kind": "selection", "path": path, "columns": (), "counts": counts, "seed": 0}


def stage(data: tuple[tuple[str, float], ...], tokens: float, tokens_per_step: int, shuffle: int) -> dict:
    """One epoch of `tokens`: learning rate 1e-4 with 5 % warm-up, then a cosine to 0 (the floor is not stated)."""
    steps = round(tokens / tokens_per_step)
    return {
        "data": data, "shuffle": shuffle, "steps": steps, "tokens_per_step": tokens_per_step, "learning_rate": 1e-4,
        "warmup_steps": max(round(0.05 * steps), 1), "final_learning_rate": 0.0, "allow_few_updates": False,
    }  # fmt: skip


def shrink(c: ConfigDict) -> None:
    """The small twin of a config, which the tests train a few steps: family and recipe are kept, sizes are not, nor evals that take
    another model."""
    c.evals = {name: one for name, one in c.evals.items() if one.kind != "inspect"}
    c.teachers = {}
    c.comparisons = tuple(one for one in c.comparisons if one[1] in ("base_text", *c.evals))
    c.model.update(layers=2, width=32, mlp=48, heads=4, kv_heads=2, head_dim=16, compute_dtype="float32")
    c.vocab_size, c.row_length, c.too_long = 512, 256, "split"
    c.log.update(metrics_every=2, checkpoint_every=10)
    for one in c.stages.values():
        one.update(steps=20, warmup_steps=1, tokens_per_step=8 * c.row_length)
