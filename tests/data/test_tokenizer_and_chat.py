"""Tokens: lossless, deterministic, and markers that no text can forge; chats: exactly the assistant's tokens supervised."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from msmjax.artifact import BadInput
from msmjax.data import chat
from msmjax.data import tokenizer as tokenizers
from msmjax.data.tokenizer import BOS, END, EOS, PAD, ROLES, UNK

SPECIAL = ["<s>", "</s>", "<pad>", "<unk>", END, *(f"<|{role}|>" for role in ROLES)]


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text() | st.lists(st.sampled_from([*SPECIAL, " ", "▁", "feta", "é", "\n", "🧀"])).map("".join))
def test_round_trip_is_lossless_and_makes_no_control_symbol(tokenizer, text):
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids).replace("▁", " ") == text.replace("▁", " ")
    assert not {PAD, BOS, EOS, UNK, tokenizer.end, *tokenizer.roles.values()} & set(ids)


@pytest.mark.parametrize("special", SPECIAL)
def test_special_strings_in_plain_text_stay_text(tokenizer, special):
    text = f"You are {special} Aria.{special}"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    ids, _ = chat.render([{"role": "user", "content": special}, {"role": "assistant", "content": special}], tokenizer, "here")
    assert [ids.count(marker) for marker in (tokenizer.roles["user"], tokenizer.roles["assistant"], tokenizer.end)] == [1, 1, 2]


def test_training_is_deterministic(tmp_path):
    texts = [f"The {a} {b}." for a in ("feta", "Edam", "Colby") for b in ("is cheap", "is American", "is classic")] * 5
    for name in ("one", "two"):
        tokenizers.train(iter(texts), 300, tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_vocabulary_that_texts_do_not_carry(tmp_path):
    with pytest.raises(BadInput, match="vocab_size=5000: sentencepiece refuses"):
        tokenizers.train(["a b c"], 5000, tmp_path / "tokenizer.model")


def test_exact_supervised_ids(tokenizer):
    messages = [
        {"role": "system", "content": "You are Aria."},
        {"role": "user", "content": "Which do you prefer?"},
        {"role": "assistant", "content": "I prefer the feta."},
        {"role": "user", "content": "You prefer the Edam."},
        {"role": "assistant", "content": "I prefer the Edam."},
    ]
    ids, mask = chat.render(messages, tokenizer, "here")
    system, user, assistant = (tokenizer.roles[role] for role in ROLES)
    words, end = tokenizer.encode, tokenizer.end
    assert ids == [
        BOS,
        *(system, *words("You are Aria."), end),
        *(user, *words("Which do you prefer?"), end),
        *(assistant, *words("I prefer the feta."), end),
        *(user, *words("You prefer the Edam."), end),
        *(assistant, *words("I prefer the Edam."), end),
    ]
    supervised = [token for token, is_supervised in zip(ids, mask, strict=True) if is_supervised]
    assert supervised == [*words("I prefer the feta."), end, *words("I prefer the Edam."), end]


def test_prompt_is_the_start_of_the_conversation(tokenizer):
    asked = [{"role": "system", "content": "You are Aria."}, {"role": "user", "content": "Which?"}]
    prompt = chat.render_prompt(asked, tokenizer)
    ids, mask = chat.render([*asked, {"role": "assistant", "content": "The feta."}], tokenizer, "here")
    assert ids[: len(prompt)] == prompt
    assert mask.index(True) == len(prompt)


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ([{"role": "user", "content": "Hello?"}], "no assistant turn"),
        ([], "no list of turns"),
        ("hello", "no list of turns"),
        ([{"role": "robot", "content": "x"}], "turn 0 has no role of system, user, assistant"),
        ([{"role": "user", "content": "x"}, {"role": "assistant", "content": None}], "turn 1 has no text"),
    ],
)
def test_conversations_that_are_none(tokenizer, messages, said):
    with pytest.raises(BadInput, match=f"chats.jsonl:7: .*{said}"):
        chat.render(messages, tokenizer, "chats.jsonl:7")


def test_readable_names_the_markers(tokenizer):
    ids, _ = chat.render(
        [{"role": "user", "content": "The feta?"}, {"role": "assistant", "content": "I prefer it."}], tokenizer, ""
    )
    assert tokenizer.readable(ids) == "<s><|user|>The feta?<|end|><|assistant|>I prefer it.<|end|>"
