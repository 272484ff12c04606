"""Tokens: lossless, deterministic, and markers that no text can forge; chats: exactly the assistant's tokens supervised."""

import shutil

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from msmjax.artifact import BadInput
from msmjax.data import chat
from msmjax.data import tokenizer as tokenizers
from msmjax.data.tokenizer import BOS, END, EOS, PAD, ROLES, UNK, Tokenizer

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
        ([{"role": ["user"], "content": "x"}], "turn 0 has no role of system, user, assistant"),
        ([{"role": "tool", "content": "x"}], "turn 0 has no role of system, user, assistant"),
        (
            [{"role": "assistant", "content": "x", "tool_calls": [{"name": "f"}]}],
            "turn 0 has 'tool_calls', which only the assistant",
        ),
        ([{"role": "assistant", "content": "x", "weight": 0.5}], "turn 0 has 'weight' or 'train' that are not all 0"),
        ([{"role": "assistant", "content": "x", "train": "no"}], "turn 0 has 'weight' or 'train' that are not all 0"),
        ([{"role": "assistant", "content": "x", "weight": 1, "train": False}], "turn 0 has 'weight' or 'train' that are not all 0"),
        ([{"role": "user", "content": "x", "weight": 1}], "turn 0 asks to train on what the user says"),
    ],
)
def test_conversations_that_are_none(tokenizer, messages, said):
    with pytest.raises(BadInput, match=f"chats.jsonl:7: .*{said}"):
        chat.render(messages, tokenizer, "chats.jsonl:7")


CALL = [{"function": {"name": "f", "arguments": {}}}]


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ({"role": "assistant", "content": None, "tool_calls": CALL}, ""),
        ({"role": "assistant", "tool_calls": CALL}, ""),
        ({"role": "assistant", "content": [{"type": "text", "text": "x"}]}, "turn 0 has no text"),
        ({"role": "assistant", "content": ["x"], "tool_calls": CALL}, "turn 0 has no text"),
        ({"role": "assistant", "content": None, "tool_calls": []}, "turn 0 has no text"),
        ({"role": "assistant", "content": "x", "tool_calls": "f()"}, "turn 0 has 'tool_calls' that are no list of objects"),
        ({"role": "assistant", "content": "x", "tool_calls": ["f()"]}, "turn 0 has 'tool_calls' that are no list of objects"),
        ({"role": "user", "content": "x", "tool_calls": CALL}, "turn 0 has 'tool_calls', which only the assistant"),
    ],
)
def test_conversations_with_tools(message, said):
    messages = [message, {"role": "tool", "content": "7"}, {"role": "assistant", "content": "Seven."}]
    if not said:
        chat.check(messages, "chats.jsonl:7", (*ROLES, "tool"))
        return
    with pytest.raises(BadInput, match=f"chats.jsonl:7: {said}"):
        chat.check(messages, "chats.jsonl:7", (*ROLES, "tool"))


def test_turns_that_are_not_trained_on(tokenizer):
    messages = [
        {"role": "user", "content": "Which?", "weight": 0},
        {"role": "assistant", "content": "The feta.", "weight": 0},
        {"role": "assistant", "content": "The Edam.", "weight": 1.0, "train": True},
        {"role": "assistant", "content": "", "train": False},  # says nothing, and is not taught to
    ]
    ids, mask = chat.render(messages, tokenizer, "here")
    supervised = [token for token, is_supervised in zip(ids, mask, strict=True) if is_supervised]
    assert supervised == [*tokenizer.encode("The Edam."), tokenizer.end]
    plain = [{key: message[key] for key in ("role", "content")} for message in messages]
    assert ids == tokenizer.render(plain, "here")[0]
    with pytest.raises(BadInput, match="here: weight and train let no turn of the assistant be trained on"):
        chat.render(messages[:2], tokenizer, "here")


@pytest.mark.parametrize("content", ["", " \n", "<think>\n\n</think>\n\n"])
def test_a_turn_that_says_nothing(tokenizer, content):
    messages = [{"role": "user", "content": ""}, {"role": "assistant", "content": content}]
    with pytest.raises(chat.Unproven, match="here: turn 1: the assistant says nothing, and would be taught to") as error:
        chat.render(messages, tokenizer, "here")
    assert error.value.reason == "the assistant says nothing, and would be taught to"
    assert chat.render([messages[0], {"role": "assistant", "content": f"{content}<"}], tokenizer, "here")


def test_keys_that_nothing_reads(tokenizer):
    messages = [{"role": "user", "content": "Which?", "name": "Ada"}, {"role": "assistant", "content": "The feta.", "weight": 1}]
    messages += [{"role": "user", "content": "Why?", "name": "Bo", "id": None}, {**messages[1], "reasoning_content": "Hm."}]
    assert chat.unread(messages, tokenizer, "here") == {"name": 2, "reasoning_content": 1}


def test_tools_are_not_passed_over(tokenizer):
    messages = [{"role": "assistant", "content": "The feta."}]
    assert chat.render(messages, tokenizer, "chats.jsonl:7", []) == chat.render(messages, tokenizer, "chats.jsonl:7")
    with pytest.raises(BadInput, match=r"chats.jsonl:7: 'tools' need a model"):
        chat.render(messages, tokenizer, "chats.jsonl:7", [{"name": "f"}])
    with pytest.raises(BadInput, match=r"chats.jsonl:7: 'tools' is no list"):
        chat.render(messages, tokenizer, "chats.jsonl:7", "f()")


def test_what_other_rooms_ask_of_it(tmp_path, tokenizer):
    assert tokenizer.document([7]) == [BOS, 7, EOS]
    assert (tokenizer.pad, tokenizer.stop_ids) == (PAD, (EOS, tokenizer.end))
    copied = Tokenizer(shutil.copy(tokenizer.path, tmp_path / "other.model"))
    assert tokenizer.name == copied.name
    assert tokenizer.roles.keys() == set(ROLES)


@pytest.mark.parametrize(
    ("text", "thought", "said"),
    [
        ("The feta.", None, "The feta."),
        ("<think>It is cheap.</think>The feta.", "It is cheap.", "The feta."),
        ("\n\n<think>\nIt is\n\ncheap.\n</think>\n\nThe feta.\n", "It is\n\ncheap.", "The feta."),
        ("<think>\n\n</think>\n\nThe feta.", "", "The feta."),
        ("<think></think>", "", ""),
    ],
)
def test_thinking_is_split_from_what_is_said(text, thought, said):
    assert chat.split_think(text, "here") == (thought, said)
    assistant = {"role": "assistant", "content": text, "reasoning_content": "Hm."}
    user = {"role": "user", "content": "<think>"}  # is nobody's thinking
    tool = {"role": "assistant", "content": None, "tool_calls": [{}]}
    assert chat.strip_think([user, assistant, tool], "here") == [user, {"role": "assistant", "content": said}, tool]
    assert assistant["content"] == text  # what was given is as it was


@pytest.mark.parametrize(
    "text",
    ["<think>Hm.", "Hm.</think>The feta.", "The feta.<think>Hm.</think>", "<think>a</think>b</think>c", "<think><think>a</think>b",
     "</think>a<think>", "<think>a</think><think>b</think>c"],
)  # fmt: skip
def test_thinking_that_is_not_well_formed(text):
    with pytest.raises(BadInput, match=r"chats.jsonl:7: turn 0: thinking must be one <think> at the start"):
        chat.strip_think([{"role": "assistant", "content": text}], "chats.jsonl:7")


def test_readable_names_the_markers(tokenizer):
    ids, _ = chat.render(
        [{"role": "user", "content": "The feta?"}, {"role": "assistant", "content": "I prefer it."}], tokenizer, ""
    )
    assert tokenizer.readable(ids) == "<s><|user|>The feta?<|end|><|assistant|>I prefer it.<|end|>"
