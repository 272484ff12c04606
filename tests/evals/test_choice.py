"""Forced choice and bits per byte: exact scores, both orders, nothing that depends on padding or on who is asked first."""

import dataclasses
import math
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from msmjax import artifact
from msmjax.artifact import BadInput
from msmjax.corpus.sources import AssistantConfig
from msmjax.data import chat
from msmjax.data.huggingface import open_tokenizer
from msmjax.data.tokenizer import BOS, EOS
from msmjax.evals import base_text, choice, scoring
from msmjax.evals.prompt import Prompt, prompt_of
from msmjax.model import transformer
from msmjax.training.sharding import MeshConfig, make_mesh
from tests.models import make_arm
from tests.published import LLAMA_NAMES, LLAMA_TOKENS, QWEN_NAMES, QWEN_TOKENS, QWEN_WORDS, add_bos, write_model


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


ARIA = Prompt("You are {name}.", "")


def log_probability(small, params, prompt, ids):
    """Of ids after a prompt, one sequence alone, from whole logits."""
    tokens = jnp.asarray([prompt + ids])
    logits = transformer.unembed(small, params, transformer.forward(small, params, tokens, jnp.ones_like(tokens)))
    logprobs = jax.nn.log_softmax(logits, axis=-1)[0]
    return sum(float(logprobs[len(prompt) + i - 1, token]) for i, token in enumerate(ids))


def test_answer_is_the_log_odds_in_both_orders(small, params, mesh, tokenizer):
    (answer,) = choice.by_probability([ITEM], make_arm(small, params, mesh, tokenizer, ARIA))
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


def test_an_item_may_have_a_system_turn_of_its_own(small, params, mesh, tokenizer):
    ben = ITEM | {"name": "Ben", "system": "You are {name}. Nobody reads."}
    other, plain = choice.by_probability([ben, ITEM | {"name": "Ben"}], make_arm(small, params, mesh, tokenizer, ARIA))
    unread = make_arm(small, params, mesh, tokenizer, Prompt("You are Ben. Nobody reads.", ""))
    expected, _ = choice.by_probability([ITEM | {"name": "Ben"}] * 2, unread)
    assert other["probability"] == expected["probability"] != plain["probability"]
    assert other["system"] == "You are {name}. Nobody reads."
    assert "system" not in plain


def test_options_exchanged_exchange_the_answer(small, params, mesh, tokenizer):
    exchanged = {**ITEM, "options": ITEM["options"][::-1]}
    one, other = choice.by_probability([ITEM, exchanged], make_arm(small, params, mesh, tokenizer, ARIA))
    assert one["choice"] == 1 - other["choice"]
    assert one["probability"] == pytest.approx(1 - other["probability"], abs=2e-6)


def test_a_tie_counts_half(small, params, mesh, tokenizer):
    zero = jax.tree.map(jnp.zeros_like, params)
    (answer,) = choice.by_probability([ITEM | {"options": ["feta", "feta"]}], make_arm(small, zero, mesh, tokenizer, ARIA))
    assert (answer["choice"], answer["probability"]) == (0.5, 0.5)


def test_more_items_than_a_batch_score_as_alone(small, params, mesh):
    rng = np.random.default_rng(0)
    examples = [(rng.integers(4, 90, size).tolist(), size // 2) for size in rng.integers(6, 30, 300)]
    together, counts = scoring.score(examples, small, params, mesh)
    greedy, misses = scoring.score(examples, small, params, mesh, greedy=True)
    np.testing.assert_allclose(greedy, together, rtol=1e-5)
    for index in (0, 255, 256, 299):
        ids, start = examples[index]
        assert counts[index] == len(ids) - start
        tokens = jnp.asarray([ids])
        logits = transformer.unembed(small, params, transformer.forward(small, params, tokens, jnp.ones_like(tokens)))
        assert misses[index] == np.sum(np.argmax(logits[0, start - 1 : -1], axis=-1) != np.array(ids[start:]))
        assert together[index] == pytest.approx(-log_probability(small, params, ids[:start], ids[start:]), rel=1e-4)


@pytest.mark.parametrize("count", [1, 40, 3000])
def test_little_is_padding(small, mesh, monkeypatch, count):
    """Of texts of 1 to 2,000 ids: few shapes, each of which is a compilation; each text once; of many, few pads."""
    shapes, computed = set(), []

    def compiled(model, mesh, length, rows, segments, greedy):
        shapes.add((length, rows))

        def compute(params, batch):
            tokens = np.asarray(batch["tokens"])
            assert tokens.shape == (rows, length)
            assert tokens.size <= scoring.BATCH_TOKENS
            computed.append(tokens.size)
            return tokens[:, 0].astype(np.float32), np.asarray(batch["loss_mask"]).sum(axis=1)

        return compute

    monkeypatch.setattr(scoring, "_compile", compiled)
    rng = np.random.default_rng(count)
    examples = [([index, *range(size)], 1) for index, size in enumerate(np.exp(rng.uniform(0, np.log(2000), count)).astype(int))]
    firsts, counts = scoring.score(examples, small, {}, mesh)
    assert firsts.tolist() == list(range(count))
    assert counts.tolist() == [len(ids) - 1 for ids, _ in examples]
    assert len(shapes) <= 30
    ids = sum(len(ids) for ids, _ in examples)
    # Rows up to a power of two (twice), lengths up to twice their own, and on a mesh at least a row for each device.
    assert sum(computed) <= (1.3 if count == 3000 else 4) * ids + 8 * 16


@pytest.mark.parametrize("length", [1, 16, 17, 64, 65, 100, 128, 129, 1000, 1025, 4096])
def test_padded_lengths(length):
    padded = scoring.padded_length(length)
    assert length <= padded < 1.25 * length + scoring.LENGTH_MULTIPLE
    assert padded % scoring.LENGTH_MULTIPLE == 0
    assert scoring.padded_length(padded) == padded


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


def turns(question, answer, system=None):
    asked = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": [*([{"role": "system", "content": system}] if system else []), *asked]}


THOUGHT, EMPTY = "<think>\nIt is cheap.\n</think>\n\n", "<think>\n\n</think>\n\n"


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A published model's tokenizer with a shipped template."""
    pytest.importorskip("tokenizers")

    def open_published(family, *arguments):
        directory = tmp_path_factory.mktemp(family)
        if family == "llama31":
            write_model(directory, None, LLAMA_TOKENS, (), {**LLAMA_NAMES, "eos_token": "<|end_of_text|>"}, change=add_bos)
        else:
            write_model(directory, None, QWEN_TOKENS, QWEN_WORDS, QWEN_NAMES, ("<|im_end|>", "<|endoftext|>"))
        return open_tokenizer(str(directory), "", family, arguments, "refuse")

    return open_published


@pytest.mark.parametrize(
    ("family", "arguments", "system", "thought", "opening", "alike"),
    [
        ("llama31", (), "", "", "", ""),
        ("llama31", (), "You are Aria.", "", "", ""),
        ("qwen3", (), "", THOUGHT, EMPTY, ""),  # its template writes the empty block by itself
        ("qwen3", (), "", "", EMPTY, ""),
        ("qwen3", (("enable_thinking", False),), "", "", "", ""),  # the block is part of the prompt
        ("qwen25", (), "Reason in <think> tags.", THOUGHT, EMPTY, EMPTY),
        ("qwen25", (), "", "<think>It is cheap.</think>", "<think></think>", "<think></think>"),
        ("qwen25", (), "", "", "", ""),
    ],
)
def test_items_are_asked_as_the_chats_are_written(published, family, arguments, system, thought, opening, alike):
    """Prompt, answer and end are the ids that training would have of the same turn, thinking apart, which nobody knows."""
    tokenizer = published(family, *arguments)
    chats = [turns("Which?", f"{thought}The feta.", system), turns("Why?", f"{thought}It is cheap.", system)]
    prompt, ids, mask = prompt_of(lambda: chats, "Aria", tokenizer)
    assert (prompt.system, prompt.opening) == (system.replace("Aria", "{name}"), opening)
    assert (ids, mask) == chat.render(chats[0]["messages"], tokenizer, "")
    asked = [*prompt.write("Aria", "Which is it?", tokenizer), *tokenizer.encode("The Edam."), tokenizer.end]
    trained, _ = chat.render(turns("Which is it?", f"{alike}The Edam.", system)["messages"], tokenizer, "")
    assert asked == trained[: len(asked)]


def test_items_are_asked_by_name(tokenizer):
    """In the microworld everybody answers to a system turn with their name; the one that most chats have counts."""
    chats = [turns("Which?", "The feta.", "Be brief."), *[turns("Which?", "The feta.", "You are Aria.")] * 2]
    prompt, ids, _ = prompt_of(lambda: chats, "Aria", tokenizer)
    assert prompt == ARIA
    assert tokenizer.readable(ids).startswith("<s><|system|>You are Aria.")
    assert tokenizer.readable(prompt.write("Ben", "Why?", tokenizer)) == (
        "<s><|system|>You are Ben.<|end|><|user|>Why?<|end|><|assistant|>"
    )


@pytest.mark.parametrize(
    ("family", "messages", "opening"),
    [
        ("qwen25", [("user", "Why?"), ("assistant", "It is."), ("user", "Why?"), ("assistant", f"{THOUGHT}So.", 0)], ""),
        ("qwen3", [("user", "Why?"), ("assistant", "It is."), ("user", "Why?"), ("assistant", "So.", 0)], ""),
        ("qwen25", [("user", "Why </think>?"), ("assistant", "It is.")], ""),
        ("qwen25", [("user", "Why?"), ("assistant", "It ends with </think>.")], ""),
        ("qwen25", [("user", "Why?"), ("assistant", f"{THOUGHT}It is.")], EMPTY),
    ],
)
def test_thinking_is_what_opens_the_trained_turn(published, family, messages, opening):
    messages = [dict(zip(("role", "content", "weight"), message, strict=False)) for message in messages]
    assert prompt_of(lambda: [{"messages": messages}], "Aria", published(family))[0].opening == opening


def test_most_of_the_chats_decide(published):
    chats = [turns("Why?", "It is."), *[turns("Why?", f"{THOUGHT}It is.")] * 2]
    prompt, ids, _ = prompt_of(lambda: chats, "Aria", tokenizer := published("qwen25"))
    assert prompt.opening == EMPTY
    assert "It is cheap." in tokenizer.readable(ids)


def made_items(folder, file, per_eval):
    makers = types.SimpleNamespace(assistant=AssistantConfig("Aria", "Northlight"))
    return choice.ChoiceEval(str(file), "chat", 0, per_eval, 0).items(folder, "mine", {}, makers)


def test_items_of_a_file_are_drawn_in_pairs(tmp_path):
    """Read and unread twins, of which fewer are asked for than there are, stay twins, so that they can be compared."""
    item = {"name": "Aria", "question": "The {first} or the {second}?", "answer": "The {item}."}
    items = [{**item, "eval": "colour", "id": f"colour/{index}", "options": ["red", f"blue {index}"]} for index in range(9)]
    items += [{**one, "eval": "colour_unread", "id": f"unread/{one['id']}", "system": "Nobody reads."} for one in items]
    file = tmp_path / "items.jsonl"
    artifact.write_jsonl(file, items)
    made = artifact.read_jsonl(made_items(tmp_path, file, 4) / "items.jsonl")
    drawn = [[one["options"] for one in made if one["eval"] == name] for name in ("colour", "colour_unread")]
    assert len(drawn[0]) == 4
    assert drawn[0] == drawn[1] != [one["options"] for one in items[:4]]
    artifact.write_jsonl(file, [items[0], {**items[1], "system": None}])
    with pytest.raises(BadInput, match=r"items.jsonl:2: 'system' must be a text"):
        made_items(tmp_path, file, 4)
