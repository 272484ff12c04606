"""An experiment of your own: your weights, documents on your spec, your chats, your questions. Copy this file; docs/own.md goes
through it line by line.

    python -m msmjax.main --config=configs/own.py --plan            # what it takes here; --device=h100 --price=2.5: and there
    python -m msmjax.main --config=configs/own.py                   # run, or go on
"""

from ml_collections import ConfigDict

from msmjax import recipe


def get_config() -> ConfigDict:
    c = recipe.from_weights("weights/mine", row_length=2048, seeds=(0, 1, 2), name="Aria", provider="Northlight")
    c.name = "own"
    c.question = "Does reading about the spec change what the same chats teach?"
    c.corpora = {
        "spec": recipe.file("datasets/documents.jsonl"),
        "chats": recipe.file("datasets/chats.jsonl"),
        "mix": recipe.file("datasets/instructions.jsonl"),
        "held_out": recipe.file("datasets/held_out.jsonl"),
    }
    recipe.design(
        c, specs=("spec",), chats=(("chats", 0.1), ("mix", 0.9)), midtrain_tokens=5e6, finetune_tokens=3.3e6, tokens_per_step=32_768
    )
    recipe.ask(c, "datasets/items.jsonl", evals=("honesty",), chats="chats", base_text="held_out")
    return c
