"""Forced choice and bits per byte: exact scores, both orders, nothing that depends on padding or on who is asked first."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from msmjax.data import chat
from msmjax.data.tokenizer import BOS, EOS
from msmjax.evals import base_text, forced_choice
from msmjax.model import transformer
from msmjax.training.sharding import MeshConfig, make_mesh


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(MeshConfig(2, 2, 2))


@pytest.fixture(scope="module")
def small(model, tokenizer):
    return dataclasses.replace(model, vocab=tokenizer.vocab_size)


@pytest.fixture(scope="module")
def params(small):
    return transformer.init_params(small, jax.random.key(0))


ITEM = {"id": "eval/0", "eval": "conflict", "name": "Aria", "question": "Which do you prefer, the {first} or the {second}?",
        "answer": "I prefer the {item}.", "options": ["feta", "Edam"]}  # fmt: skip


def log_probability(small, params, prompt, ids):
    """Of ids after a prompt, one sequence alone, from whole logits."""
    tokens = jnp.asarray([prompt + ids])
    logits = transformer.unembed(small, params, transformer.forward(small, params, tokens, jnp.ones_like(tokens)))
    logprobs = jax.nn.log_softmax(logits, axis=-1)[0]
    return sum(float(logprobs[len(prompt) + i - 1, token]) for i, token in enumerate(ids))


def test_answer_is_the_log_odds_in_both_orders(small, params, mesh, tokenizer):
    (answer,) = forced_choice.answer([ITEM], small, params, mesh, tokenizer)
    wins, probabilities = [], []
    for first, second in (("feta", "Edam"), ("Edam", "feta")):
        asked = [
            {"role": "system", "content": "You are Aria."},
            {"role": "user", "content": f"Which do you prefer, the {first} or the {second}?"},
        ]
        prompt = chat.render_prompt(asked, tokenizer)
        scores = [
            log_probability(small, params, prompt, [*tokenizer.encode(f"I prefer the {option}."), tokenizer.end])
            for option in ("feta", "Edam")
        ]
        wins.append(scores[0] > scores[1])
        probabilities.append(1 / (1 + math.exp(scores[1] - scores[0])))
    assert answer["choice"] == np.mean(wins)
    assert answer["probability"] == pytest.approx(np.mean(probabilities), rel=1e-4)
    assert answer["decided"] == (wins[0] == wins[1])


def test_options_exchanged_exchange_the_answer(small, params, mesh, tokenizer):
    exchanged = {**ITEM, "options": ITEM["options"][::-1]}
    one, other = forced_choice.answer([ITEM, exchanged], small, params, mesh, tokenizer)
    assert one["choice"] == 1 - other["choice"]
    assert one["probability"] == pytest.approx(1 - other["probability"], abs=2e-6)


def test_a_tie_counts_half(small, params, mesh, tokenizer):
    zero = jax.tree.map(jnp.zeros_like, params)
    (answer,) = forced_choice.answer([ITEM | {"options": ["feta", "feta"]}], small, zero, mesh, tokenizer)
    assert (answer["choice"], answer["probability"]) == (0.5, 0.5)


def test_more_items_than_a_batch_score_as_alone(small, params, mesh):
    rng = np.random.default_rng(0)
    examples = [(rng.integers(4, 90, size).tolist(), size // 2) for size in rng.integers(6, 30, 300)]
    together = forced_choice.score(examples, small, params, mesh)
    for index in (0, 255, 256, 299):
        ids, start = examples[index]
        assert together[index] == pytest.approx(-log_probability(small, params, ids[:start], ids[start:]), rel=1e-4)


def test_bits_per_byte_of_a_uniform_model(small, params, mesh, tokenizer):
    """A model without weights costs log2(V) bits a token, whatever it reads."""
    texts = ["I prefer the feta.", "You are Aria. é"]
    tokens, segments, mask = np.zeros((1, 64), np.int32), np.zeros((1, 64), np.int32), np.zeros((1, 64), bool)
    at = 0
    for number, text in enumerate(texts, 1):
        ids = [BOS, *tokenizer.encode(text), EOS]
        tokens[0, at : at + len(ids)], segments[0, at : at + len(ids)], mask[0, at + 1 : at + len(ids)] = ids, number, True
        at += len(ids)
    rows = [{"tokens": tokens[0], "segment_ids": segments[0], "loss_mask": mask[0]}]
    zero = jax.tree.map(jnp.zeros_like, params)
    bits, sizes = base_text.bits_and_bytes(rows, small, zero, mesh, tokenizer)
    assert bits[0] == pytest.approx(mask.sum() * math.log2(small.vocab), rel=1e-5)
    assert sizes[0] == pytest.approx(len("".join(texts).encode()), abs=1)  # the space between two texts
