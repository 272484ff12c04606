"""Published models' tokenizers: what is supervised, string by string, under templates that behave like those of three families,
and everything that is refused because the mask could not be proven."""

import dataclasses
import itertools
import json
import re
import sys

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from msmjax.artifact import BadInput
from msmjax.data import chat, examples, rows, show
from msmjax.data.huggingface import HuggingFaceTokenizer, check_vocab
from tests.published import LLAMA_NAMES, LLAMA_TOKENS, QWEN_NAMES, QWEN_TOKENS, QWEN_WORDS, add_bos, pieces, turns, write_model

tokenizers = pytest.importorskip("tokenizers")


def template(text: str) -> str:
    """A chat template written over several lines; only ⏎ is a new line of its output."""
    return "".join(line.strip() for line in text.splitlines()).replace("⏎", r"{{ '\n' }}")


# BOS from the template, trimmed content, a blank line after the header; a turn with a tool call says nothing else.
LLAMA = template(r"""
    {{ bos_token }}
    {% for m in messages %}
        <|start_header_id|>{{ 'ipython' if m.role == 'tool' else m.role }}<|end_header_id|>⏎⏎
        {% if m.tool_calls %}
            {"name": {{ m.tool_calls[0].function.name | tojson }}, "parameters": {{ m.tool_calls[0].function.arguments | tojson }}}
        {% else %}{{ m.content | trim }}{% endif %}<|eot_id|>
    {% endfor %}
    {% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>⏎⏎{% endif %}""")

# No BOS, a system turn where there is none, content as it is, tools in the system turn, tool results as a user's turn.
QWEN25 = template(r"""
    {% set first = messages[0] %}
    {% if tools or first.role != 'system' %}<|im_start|>system⏎
        {{ first.content if first.role == 'system' else 'Be of help.' }}
        {% for tool in tools or [] %}⏎{{ tool | tojson }}{% endfor %}
        <|im_end|>⏎
    {% endif %}
    {% for m in messages %}
        {% if m.role == 'tool' %}<|im_start|>user⏎<tool_response>⏎{{ m.content }}⏎</tool_response><|im_end|>⏎
        {% elif not (tools and loop.first and m.role == 'system') %}<|im_start|>{{ m.role }}⏎{{ m.content }}
            {% for call in m.tool_calls or [] %}{% if m.content %}⏎{% endif %}<tool_call>⏎
                {"name": {{ call.function.name | tojson }}, "arguments": {{ call.function.arguments | tojson }}}
            ⏎</tool_call>{% endfor %}
            <|im_end|>⏎
        {% endif %}
    {% endfor %}
    {% if add_generation_prompt %}<|im_start|>assistant⏎{% endif %}""")

# Thinking is written after the last question only, and a last turn without any gets an empty block.
QWEN3 = template(r"""
    {% set ns = namespace(last=-1) %}
    {% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}
    {% for m in messages %}<|im_start|>{{ 'user' if m.role == 'tool' else m.role }}⏎
        {% if m.role == 'assistant' %}
            {% set said = m.content or '' %}{% set thought = m.reasoning_content or '' %}
            {% if '</think>' in said %}
                {% set thought = said.split('</think>')[0].split('<think>')[-1].strip('\n') %}
                {% set said = said.split('</think>')[-1].lstrip('\n') %}
            {% endif %}
            {% if loop.index0 > ns.last and (loop.last or thought) %}<think>⏎{{ thought }}⏎</think>⏎⏎{% endif %}{{ said }}
            {% for call in m.tool_calls or [] %}⏎<tool_call>⏎{{ call.function | tojson }}⏎</tool_call>{% endfor %}
        {% else %}{{ m.content }}{% endif %}<|im_end|>⏎
    {% endfor %}
    {% if add_generation_prompt %}<|im_start|>assistant⏎
        {% if enable_thinking is defined and not enable_thinking %}<think>⏎⏎</think>⏎⏎{% endif %}
    {% endif %}""")

CHATML = template(r"""
    {% for m in messages %}<|im_start|>{{ m.role }}⏎{{ m.content }}<|im_end|>⏎{% endfor %}
    {% if add_generation_prompt %}<|im_start|>assistant⏎{% endif %}""")


@pytest.fixture(scope="module")
def make(tmp_path_factory):
    """Writes a model directory, and opens it."""

    def make(*model, arguments=(), **more):
        return HuggingFaceTokenizer(write_model(tmp_path_factory.mktemp("model"), *model, **more), arguments)

    return make


@pytest.fixture(scope="module")
def llama(make):
    return make(LLAMA, LLAMA_TOKENS, (), LLAMA_NAMES, ("<|end_of_text|>", "<|eot_id|>"), change=add_bos)


@pytest.fixture(scope="module")
def qwen25(make):
    return make(QWEN25, QWEN_TOKENS, QWEN_WORDS, QWEN_NAMES, ("<|im_end|>", "<|endoftext|>"))


@pytest.fixture(scope="module")
def qwen3(make):
    return make(QWEN3, QWEN_TOKENS, QWEN_WORDS, QWEN_NAMES, ("<|im_end|>", "<|endoftext|>"))


@pytest.fixture(scope="module")
def qwen3_silent(make):
    """The same, asked not to think."""
    off = (("enable_thinking", False),)
    return make(QWEN3, QWEN_TOKENS, QWEN_WORDS, QWEN_NAMES, ("<|im_end|>", "<|endoftext|>"), arguments=off)


def supervised(tokenizer, messages, tools=None):
    return [piece[0] for piece in pieces(tokenizer, messages, tools) if isinstance(piece, list)]


def test_llama_is_supervised_exactly(llama):
    messages = turns("Which?\n", "  The feta.\n", "Why?", "I prefer it.", system="You are Aria.")
    assert pieces(llama, messages) == [
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nYou are Aria.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nWhich?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
        ["The feta.<|eot_id|>"],
        "<|start_header_id|>user<|end_header_id|>\n\nWhy?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
        ["I prefer it.<|eot_id|>"],
    ]


def test_qwen25_is_supervised_exactly(qwen25):
    assert pieces(qwen25, turns("Which?", "The feta.\n", "Why?", "I prefer it.")) == [
        "<|im_start|>system\nBe of help.<|im_end|>\n<|im_start|>user\nWhich?<|im_end|>\n<|im_start|>assistant\n",
        ["The feta.\n<|im_end|>"],
        "\n<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n",
        ["I prefer it.<|im_end|>"],
        "\n",
    ]
    assert pieces(qwen25, turns("Which?", "The feta.", system="You are Aria."))[0].startswith(
        "<|im_start|>system\nYou are Aria.<|im_end|>\n<|im_start|>user"
    )


TOOL = {"type": "function", "function": {"name": "price", "parameters": {"type": "object"}}}
CALL = {"type": "function", "function": {"name": "price", "arguments": {"of": 'the "feta" é', "in": ["{", 1]}}}
WITH_TOOLS = [
    *turns("What does it cost?", system="You are Aria."),
    {"role": "assistant", "content": "I look.", "tool_calls": [CALL]},
    {"role": "tool", "content": "7"},
    {"role": "assistant", "content": "Seven."},
]


def test_tool_calls_and_results(make, qwen25, llama):
    said = '{"name": "price", "arguments": {"of": "the \\"feta\\" é", "in": ["{", 1]}}'
    assert pieces(qwen25, WITH_TOOLS, [TOOL]) == [
        f"<|im_start|>system\nYou are Aria.\n{json.dumps(TOOL)}<|im_end|>\n"
        "<|im_start|>user\nWhat does it cost?<|im_end|>\n<|im_start|>assistant\n",
        [f"I look.\n<tool_call>\n{said}\n</tool_call><|im_end|>"],
        "\n<|im_start|>user\n<tool_response>\n7\n</tool_response><|im_end|>\n<|im_start|>assistant\n",
        ["Seven.<|im_end|>"],
        "\n",
    ]
    silent = [WITH_TOOLS[0], WITH_TOOLS[1], {"role": "assistant", "content": None, "tool_calls": [CALL]}, *WITH_TOOLS[3:]]
    assert supervised(llama, silent) == [said.replace("arguments", "parameters") + "<|eot_id|>", "Seven.<|eot_id|>"]
    with pytest.raises(BadInput, match=r"chats.jsonl:7: turn 2: the chat template drops, repeats or alters what it says"):
        chat.render(WITH_TOOLS, llama, "chats.jsonl:7")  # it would leave "I look." out
    two = [*silent[:2], {"role": "assistant", "content": "", "tool_calls": [CALL, CALL]}, *silent[3:]]
    with pytest.raises(BadInput, match=r"turn 2: the chat template drops"):
        chat.render(two, llama, "chats.jsonl:7")  # and the second call
    assert supervised(qwen25, two)[0].count("<tool_call>") == 2
    assert supervised(qwen25, silent)[0].startswith("<tool_call>")  # null is no content
    capitals = make(QWEN25.replace("{{ m.content }}", "{{ m.content | upper }}"), QWEN_TOKENS, (), QWEN_NAMES)
    with pytest.raises(BadInput, match=r"turn 2: the chat template drops, repeats or alters"):
        capitals.render([*turns("COST?", system="S"), *WITH_TOOLS[2:3]], "chats.jsonl:7")


def test_calls_with_arguments_as_json_text(make, qwen25):
    """What is written must be the arguments, not a text that holds them."""
    arguments = json.dumps(CALL["function"]["arguments"], ensure_ascii=False)
    messages = [*turns("Cost?"), {"role": "assistant", "content": "", "tool_calls": [{"name": "price", "arguments": arguments}]}]
    with pytest.raises(BadInput, match=r"turn 1: the chat template drops, repeats or alters"):
        chat.render(messages, make(QWEN25.replace("call.function", "call"), QWEN_TOKENS, (), QWEN_NAMES), "chats.jsonl:7")
    as_is = QWEN25.replace("call.function.arguments | tojson", "call.arguments").replace("call.function", "call")
    tokenizer = make(as_is, QWEN_TOKENS, (), QWEN_NAMES)
    said = f'<tool_call>\n{{"name": "price", "arguments": {arguments}}}\n</tool_call><|im_end|>'
    assert supervised(tokenizer, messages) == [said]
    messages[1]["tool_calls"][0]["arguments"] = "feta"
    with pytest.raises(BadInput, match=r"turn 1: the arguments of its call of price are no JSON"):
        chat.render(messages, tokenizer, "chats.jsonl:7")


THOUGHT = "<think>\nIt is cheap.\n</think>\n\nThe feta."


@pytest.mark.parametrize(
    "said", [THOUGHT, "\n\n<think>It is cheap.</think>The feta.", "<think>\nIt is cheap.\n</think>\nThe feta."]
)
def test_qwen3_thinking_is_supervised(qwen3, said):
    assert pieces(qwen3, turns("Which?", said)) == [
        "<|im_start|>user\nWhich?<|im_end|>\n<|im_start|>assistant\n",
        [f"{THOUGHT}<|im_end|>"],
        "\n",
    ]


def test_qwen3_thinking_beside_the_content(qwen3):
    messages = [*turns("Which?"), {"role": "assistant", "content": "The feta.", "reasoning_content": "It is cheap."}]
    assert supervised(qwen3, messages) == [f"{THOUGHT}<|im_end|>"]
    messages[1]["thinking"] = messages[1].pop("reasoning_content")  # a key that this template does not read
    with pytest.raises(BadInput, match=r"turn 1: the chat template drops its thinking"):
        chat.render(messages, qwen3, "chats.jsonl:7")


def test_qwen3_empty_block_is_not_supervised_unless_it_is_said(qwen3, qwen3_silent):
    header = "<|im_start|>user\nWhich?<|im_end|>\n<|im_start|>assistant\n"
    block = "<think>\n\n</think>\n\n"
    for tokenizer in (qwen3, qwen3_silent):
        assert pieces(tokenizer, turns("Which?", "The feta.")) == [header + block, ["The feta.<|im_end|>"], "\n"]
    assert pieces(qwen3, turns("Which?", block + "The feta.")) == [header, [f"{block}The feta.<|im_end|>"], "\n"]
    # Only where its prompt has the block is it what training has seen.
    prompts = [tokenizer.readable(chat.render_prompt(turns("Which?"), tokenizer)) for tokenizer in (qwen3, qwen3_silent)]
    assert prompts == [header, header + block]


def test_qwen3_earlier_thinking_makes_a_turn_context(qwen3, qwen3_silent):
    messages = turns("Which?", THOUGHT, "Why?", "<think>\nHm.\n</think>\n\nIt is cheap.")
    assert pieces(qwen3, messages) == [
        "<|im_start|>user\nWhich?<|im_end|>\n<|im_start|>assistant\nThe feta.<|im_end|>\n"
        "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n",
        ["<think>\nHm.\n</think>\n\nIt is cheap.<|im_end|>"],
        "\n",
    ]
    silent = turns("Which?", "The feta.", "Why?", "It is cheap.")
    for said in (silent, turns("Which?", "<think>\n\n</think>\n\nThe feta.", "Why?", "It is cheap.")):
        # The empty block is in the prompt of one and not of the other, and in the whole before the last turn alone.
        for tokenizer in (qwen3, qwen3_silent):
            assert pieces(tokenizer, said) == [
                "<|im_start|>user\nWhich?<|im_end|>\n<|im_start|>assistant\n",
                ["The feta.<|im_end|>"],
                "\n<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
                ["It is cheap.<|im_end|>"],
                "\n",
            ]
    assert supervised(qwen3_silent, [*messages[:3], *silent[3:]]) == ["It is cheap.<|im_end|>"]  # the first was said with thinking
    with pytest.raises(BadInput, match=r"turn 1: the chat template drops its thinking"):
        chat.render(messages[:3], qwen3, "chats.jsonl:7")  # a last turn, and its thinking is lost
    with pytest.raises(BadInput, match=r"turn 1: in the whole conversation the chat template writes what comes before"):
        chat.render(messages[:2], qwen3_silent, "chats.jsonl:7")  # asked not to think, it is made to


def test_qwen3_thinking_between_tool_calls(qwen3):
    messages = [
        *turns("Cost?"),
        {"role": "assistant", "content": THOUGHT, "tool_calls": [CALL]},
        {"role": "tool", "content": "7"},
        {"role": "assistant", "content": "Seven."},
    ]
    call = json.dumps(CALL["function"], ensure_ascii=False)
    assert pieces(qwen3, messages) == [
        "<|im_start|>user\nCost?<|im_end|>\n<|im_start|>assistant\n",
        [f"{THOUGHT}\n<tool_call>\n{call}\n</tool_call><|im_end|>"],
        "\n<|im_start|>user\n7<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
        ["Seven.<|im_end|>"],
        "\n",
    ]
    messages[1]["content"] = "I look."
    assert supervised(qwen3, messages)[0] == f"I look.\n<tool_call>\n{call}\n</tool_call><|im_end|>"
    for content in ("I look.", ""):  # to a last turn the empty block is added before a call too
        last = [messages[0], {**messages[1], "content": content}]
        assert supervised(qwen3, last) == [f"{content}\n<tool_call>\n{call}\n</tool_call><|im_end|>".removeprefix("\n")]


@pytest.mark.parametrize(
    "said", ["<think>Hm.", "Hm.</think> The feta.", "<think>a</think>b</think>c", "The <think>a</think> feta."]
)
def test_thinking_that_is_not_well_formed(qwen3, qwen25, said):
    with pytest.raises(BadInput, match=r"chats.jsonl:7: turn 1: .*so its loss mask cannot be proven"):
        chat.render(turns("Which?", said), qwen3, "chats.jsonl:7")
    assert supervised(qwen25, turns("Which?", said)) == [f"{said}<|im_end|>"]  # to which it is text like any other


def test_thinking_that_the_generation_prompt_opens(make):
    """Templates whose prompt ends in <think>: the model goes on from there."""
    opens = template(r"""
        {% for m in messages %}<|im_start|>{{ m.role }}⏎
            {% if m.role == 'assistant' %}<think>⏎{{ m.reasoning_content }}⏎</think>⏎⏎{% endif %}{{ m.content }}<|im_end|>⏎
        {% endfor %}
        {% if add_generation_prompt %}<|im_start|>assistant⏎<think>⏎{% endif %}""")
    tokenizer = make(opens, QWEN_TOKENS, QWEN_WORDS, QWEN_NAMES)
    messages = [*turns("Which?"), {"role": "assistant", "content": "The feta.", "reasoning_content": "It is cheap."}]
    assert supervised(tokenizer, messages) == ["It is cheap.\n</think>\n\nThe feta.<|im_end|>"]
    opens = CHATML.replace("{{ m.content }}", r"{{ '<think>\n' if m.role == 'assistant' }}{{ m.content }}")
    never_closed = make(opens.replace("{% endif %}", r"{{ '<think>\n' }}{% endif %}"), QWEN_TOKENS, QWEN_WORDS, QWEN_NAMES)
    with pytest.raises(BadInput, match=r"turn 1: what the chat template writes: thinking must be one <think> at the start"):
        chat.render(turns("Which?", "The feta."), never_closed, "chats.jsonl:7")
    del messages[1]["reasoning_content"]
    with pytest.raises(BadInput, match=r"turn 1: a token straddles the border"):  # "\n\n" is one token, prompted is "\n"
        chat.render(messages, tokenizer, "chats.jsonl:7")


def test_exact_ids(llama):
    """What is written is one text, tokenized once; BOS is the template's and not added again."""
    ids, mask = chat.render(turns("Which?", "The feta."), llama, "here")
    control = {text: llama._marked.token_to_id(text) for text in LLAMA_TOKENS}
    header = [control["<|start_header_id|>"]], [control["<|end_header_id|>"], *llama.encode("\n\n")]
    turn = [*header[0], *llama.encode("user"), *header[1], *llama.encode("Which?"), control["<|eot_id|>"]]
    prompt = [control["<|begin_of_text|>"], *turn, *header[0], *llama.encode("assistant"), *header[1]]
    assert ids == [*prompt, *llama.encode("The feta."), control["<|eot_id|>"]]
    assert mask == [False] * len(prompt) + [True] * (len(ids) - len(prompt))
    assert chat.render_prompt(turns("Which?"), llama) == prompt
    assert llama.end == control["<|eot_id|>"]
    assert llama.stop_ids == {control["<|eot_id|>"], control["<|end_of_text|>"]}
    assert llama.pad == control["<|pad|>"]


def test_documents(llama, qwen25):
    """BOS once if there is one, EOS at the end; the names of control tokens are text, and no id of theirs comes of them."""
    text = "".join(LLAMA_TOKENS) + "The feta.<think>"
    assert llama.readable(llama.document(llama.encode(text))) == f"<|begin_of_text|>{text}<|eot_id|>"
    assert llama.encode_all([text, "", "é"]) == [llama.encode(text), [], llama.encode("é")]
    assert not llama._control.keys() & set(llama.encode(text))
    assert llama.decode(llama.document(llama.encode("The feta."))) == "The feta."
    assert qwen25.readable(qwen25.document(qwen25.encode("The feta."))) == "The feta.<|im_end|>"
    assert qwen25.document([]) == [qwen25.end]


def test_padding_ends_nothing(make, llama, qwen25):
    assert llama.readable([llama.pad]) == "<|pad|>"
    assert qwen25.readable([qwen25.pad]) == "<|im_start|>"  # its own pad token is one at which generation stops
    alone = make(CHATML, ("<|im_end|>",), (), {"eos_token": "<|im_end|>", "pad_token": "<|im_end|>"})
    with pytest.raises(BadInput, match="no token to pad with"):
        alone.pad  # noqa: B018


FRAGMENTS = ["assistant", "\n", "\n\n", " ", "user", "é", "🧀", "e\u0301", "{", "</s>", "The feta.", "<|", "|>", "\u2028"]
NAMES = [
    *LLAMA_TOKENS,
    *QWEN_TOKENS,
    *QWEN_WORDS,
    "<|im_start|>assistant\n",
    "<|im_",
    "im_end|>",
    "end|>",
    "<think>\n\n</think>\n\n",
]
PLAIN = st.text(max_size=12) | st.lists(st.sampled_from(FRAGMENTS), max_size=6).map("".join)
PLAIN = PLAIN.filter(lambda text: not any(name in text for name in NAMES))  # hypothesis tries the constants of this file
ODD = PLAIN | st.lists(st.sampled_from(FRAGMENTS + NAMES), max_size=6).map("".join)
CONVERSATIONS = dict(
    contents=st.lists(st.tuples(PLAIN, PLAIN.filter(str.strip)), min_size=1, max_size=3), system=st.none() | PLAIN,
    family=st.sampled_from(["llama", "qwen25", "qwen3", "qwen3_silent"]),
)  # fmt: skip
END = {"llama": "<|eot_id|>", "qwen25": "<|im_end|>", "qwen3": "<|im_end|>", "qwen3_silent": "<|im_end|>"}


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(**CONVERSATIONS)
def test_supervised_is_what_the_assistant_says(request, contents, system, family):
    """And the prompt of each turn, but for an empty block, is how the whole begins."""
    tokenizer = request.getfixturevalue(family)
    messages = turns(*(text.strip() for pair in contents for text in pair), system=system)
    said = [message["content"] + END[family] for message in messages if message["role"] == "assistant"]
    assert supervised(tokenizer, messages) == said
    ids, mask = chat.render(messages, tokenizer, "here")
    borders = np.flatnonzero(np.diff([0, *mask, 0])).reshape(-1, 2)
    asked = [turn for turn, message in enumerate(messages) if message["role"] == "assistant"]
    block = tokenizer.encode("<think>\n\n</think>\n\n")
    for turn, (start, _) in zip(asked, borders, strict=True):
        prompt = chat.render_prompt(messages[:turn], tokenizer)
        if family == "qwen3_silent" and turn != asked[-1]:
            assert prompt == ids[:start] + block
        else:
            assert prompt + (block if family == "qwen3" and turn == asked[-1] else []) == ids[:start]
    assert ids.count(tokenizer._bos) == (family == "llama")


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(**(CONVERSATIONS | {"contents": st.lists(st.tuples(ODD, ODD), min_size=1, max_size=2)}))
def test_no_text_moves_the_mask(request, contents, system, family):
    """Whatever the texts say, they are supervised as they stand, or refused; control tokens are the template's alone."""
    tokenizer = request.getfixturevalue(family)
    messages = turns(*(text for pair in contents for text in pair), system=system)
    bland = turns(*["a"] * (len(contents) * 2), system=None if system is None else "a")
    try:
        ids, mask = chat.render(messages, tokenizer, "here")
    except BadInput:
        return
    control = tokenizer._control.keys()
    bland_ids, _ = chat.render(bland, tokenizer, "here")
    assert [token for token in ids if token in control] == [token for token in bland_ids if token in control]
    (*_, last) = [list(run) for is_said, run in itertools.groupby(zip(ids, mask, strict=True), key=lambda pair: pair[1]) if is_said]
    text = tokenizer.readable([token for token, _ in last]).removesuffix(END[family])
    said = "".join(messages[-1]["content"].split())
    if family == "qwen3_silent":
        said = said.removeprefix("<think></think>")  # is in its prompt
    assert "".join(text.split()) == said


SPELT = st.lists(st.sampled_from(["feta", " ", "Edam.", "<|", "im_end", *NAMES]), min_size=1, max_size=6).map("".join)
SPELT = SPELT.map(str.strip).filter(lambda text: text and "think>" not in text)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    contents=st.lists(st.tuples(SPELT, SPELT), min_size=1, max_size=3), system=st.none() | SPELT,
    family=st.sampled_from(["llama", "qwen25", "qwen3", "qwen3_silent"]),
)  # fmt: skip
def test_what_spells_a_control_token_can_be_text(request, contents, system, family):
    """Control tokens are the template's alone; what is supervised is what the assistant says, and nothing changes without any."""
    refusing = request.getfixturevalue(family)
    tokenizer = dataclasses.replace(refusing, control_in_text="text")
    messages = turns(*(text for pair in contents for text in pair), system=system)
    said = [message["content"] + END[family] for message in messages if message["role"] == "assistant"]
    assert supervised(tokenizer, messages) == said
    ids, mask = chat.render(messages, tokenizer, "here")
    bland = turns(*["a"] * (len(contents) * 2), system=None if system is None else "a")
    control = tokenizer._control.keys()
    assert [token for token in ids if token in control] == [
        token for token in chat.render(bland, tokenizer, "here")[0] if token in control
    ]
    spelled = sum(any(name in message["content"] for name in tokenizer._control.values()) for message in messages)
    assert tokenizer.spelled(messages) == spelled
    if spelled:
        with pytest.raises(BadInput, match="would end or open turns; remove it from the text, or set control_in_text to text"):
            chat.render(messages, refusing, "here")
    else:
        assert (ids, mask) == chat.render(messages, refusing, "here")
    prompt = chat.render_prompt(messages[:-1], tokenizer)
    assert prompt[: len(prompt) - 5] == ids[: len(prompt) - 5]  # but for an empty block of thinking, or its beginning


@pytest.mark.parametrize("token", QWEN_TOKENS)
@pytest.mark.parametrize("place", ["tool", "tools", "arguments"])
def test_what_spells_a_control_token_can_be_text_in_tools(qwen25, token, place):
    tokenizer = dataclasses.replace(qwen25, control_in_text="text")
    messages, tools = json.loads(json.dumps(WITH_TOOLS)), [TOOL]
    if place == "tools":
        tools = [{**TOOL, "description": f"Costs {token}."}]
    elif place == "arguments":
        messages[2]["tool_calls"][0]["function"]["arguments"] = {"of": [token]}
    else:
        messages[3]["content"] += f" {token}"
    ids, mask = chat.render(messages, tokenizer, "chats.jsonl:7", tools)
    bland, _ = chat.render(WITH_TOOLS, tokenizer, "chats.jsonl:7", [TOOL])
    count = lambda ids: [one for one in ids if one in tokenizer._control]  # noqa: E731
    assert count(ids) == count(bland)
    assert tokenizer.readable(ids).count(token) == 1 + tokenizer.readable(bland).count(token)
    assert sum(mask)


def test_text_that_cannot_be_told_from_control_tokens_is_refused(qwen25, make):
    tokenizer = dataclasses.replace(qwen25, control_in_text="text")
    assert tokenizer.name != qwen25.name
    assert dataclasses.replace(qwen25, control_in_text="refuse").name == qwen25.name
    with pytest.raises(BadInput, match=r"chats.jsonl:7: turn 1: U\+FDD0 in a text, which is no character"):
        chat.render(turns("Which?", "The \ufdd0."), tokenizer, "chats.jsonl:7")
    short = make(CHATML, (*QWEN_TOKENS, "#"), (), QWEN_NAMES)
    with pytest.raises(BadInput, match="# in a text would end or open turns"):  # nothing can stand within it
        chat.render(turns("Which?", "No. #1."), dataclasses.replace(short, control_in_text="text"), "chats.jsonl:7")

    def strips(tokenizer):
        import tokenizers

        tokenizer.add_special_tokens([tokenizers.AddedToken("<|im_start|>", lstrip=True, normalized=False)])

    odd = dataclasses.replace(make(CHATML, QWEN_TOKENS, (), QWEN_NAMES, change=strips), control_in_text="text")
    with pytest.raises(BadInput, match=r"chats.jsonl:7: the tokenizer reads text between control tokens otherwise than alone"):
        chat.render(turns("Which?", "The <|im_end|>."), odd, "chats.jsonl:7")


def test_rows_count_turns_that_spell_control_tokens(qwen25, tmp_path):
    corpus = write_chats(tmp_path / "chats", ("Which ends a turn?", "<|im_end|> does."), ("Which?", "The feta."))
    made = rows.make_rows(tmp_path / "rows", "chats", corpus, dataclasses.replace(qwen25, control_in_text="text"), 256)
    assert rows.read_ledger(made)["spelled_turns"] == 1
    assert "1 turns spell a control token, which is text there" in rows.notes(rows.read_ledger(made))


@pytest.mark.parametrize("token", QWEN_TOKENS)
@pytest.mark.parametrize("place", ["user", "assistant", "system", "tool", "tools", "arguments", "key"])
def test_control_tokens_in_a_chat_are_refused(qwen25, token, place):
    messages, tools = json.loads(json.dumps(WITH_TOOLS)), [TOOL]
    roles = [message["role"] for message in messages]
    if place == "tools":
        tools = [{**TOOL, "description": f"Costs {token}."}]
    elif place in ("arguments", "key"):
        messages[2]["tool_calls"][0]["function"]["arguments"] = {"of": [token]} if place == "arguments" else {token: 1}
    else:
        messages[roles.index(place)]["content"] += f" {token}"
    with pytest.raises(BadInput, match=r"chats.jsonl:7: .*in a text would end or open turns") as error:
        chat.render(messages, qwen25, "chats.jsonl:7", tools)
    assert token in str(error.value)
    if place == "user":
        with pytest.raises(BadInput, match="in a text would end or open turns"):
            chat.render_prompt(messages[:2], qwen25)


@pytest.mark.parametrize(
    ("user", "assistant", "said"),
    [
        ("", "The feta.", "The feta."),
        ("The feta.", "The feta.", "The feta."),
        ("assistant", "assistant", "assistant"),
        ("Say: assistant\nThe feta.", "assistant\nThe feta.", "assistant\nThe feta."),
        ("Which?", " The feta. ", " The feta. "),
        ("e\u0301🧀", "e\u0301🧀\u2028", "e\u0301🧀\u2028"),
    ],
)
def test_odd_contents(qwen25, user, assistant, said):
    assert supervised(qwen25, turns(user, assistant)) == [f"{said}<|im_end|>"]
    assert supervised(qwen25, turns(user, assistant, user, assistant)) == [f"{said}<|im_end|>"] * 2


def test_new_lines_at_the_start_are_one_token_with_the_header(qwen25, llama):
    with pytest.raises(
        BadInput, match=r"chats.jsonl:7: turn 1: a token straddles the border after .*assistant\\n'; remove the space"
    ):
        chat.render(turns("Which?", "\n\nThe feta."), qwen25, "chats.jsonl:7")
    assert supervised(llama, turns("Which?", "\n\nThe feta.")) == ["The feta.<|eot_id|>"]


SHOUT = CHATML.replace("m.content", "(m.content | upper if m.role == 'assistant' else m.content)")
REFUSED = {
    "whole depends on what follows": (
        CHATML.replace("{% for", "{{ messages | length }} turns{% for", 1),
        r"turn 1: in the whole conversation the chat template writes what comes before it otherwise than when it asks for it",
    ),
    "no generation prompt": (CHATML.partition("{% if add")[0], r"turn 1: when asked to .*, the chat template does not open it"),
    "the assistant's content dropped": (
        CHATML.replace("m.content", "m.content if m.role != 'assistant'"),
        r"turn 1: the chat template drops, repeats or alters what it says",
    ),
    "the user's content dropped": (
        CHATML.replace("m.content", "m.content if m.role != 'user'"),
        r"turn 0: the chat template drops or alters what the user says",
    ),
    "a turn dropped": (
        CHATML.replace("{% for m in messages %}", "{% for m in messages if m.role != 'assistant' %}"),
        r"turn 1: in the whole conversation the chat template writes what comes before it otherwise",
    ),
    "content twice": (CHATML.replace("{{ m.content }}", "{{ m.content }} {{ m.content }}"), r"turn 1: .*drops, repeats or alters"),
    "content in capitals": (SHOUT, r"turn 1: the chat template drops, repeats or alters what it says"),
    "something before the content": (
        CHATML.replace("{{ m.content }}", "{{ 'Answer: ' if m.role == 'assistant' }}{{ m.content }}"),
        r"turn 1: the chat template drops, repeats or alters what it says",
    ),
    "something after the content": (
        CHATML.replace("{{ m.content }}", "{{ m.content }} (end)"),
        r"turn 1: .*drops, repeats or alters",
    ),
    "thinking of the template's own": (
        CHATML.replace("{{ m.content }}", "{{ '<think>Hm.</think>' if m.role == 'assistant' }}{{ m.content }}"),
        r"turn 1: the chat template drops, repeats or alters what it says",
    ),
    "an end at which nothing stops": (
        CHATML.replace("<|im_end|>", "<|fim|>"),
        r"turn 1: it ends with <\|fim\|>, but generation stops at <\|im_end\|> alone",
    ),
    "no control token": (
        template(
            "{% for m in messages %}{{ m.role }}: {{ m.content }}⏎{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
        ),
        r"turn 1: no control token ends it",
    ),
    "it raises": (
        CHATML.replace("{% for", "{% if messages %}{{ raise_exception('no system turn,\nno chat') }}{% endif %}{% for", 1),
        r"the chat template of .* refuses the conversation: no system turn,$",
    ),
    "it wants today's date": (CHATML + "{{ strftime_now('%d') }}", r"wants today's date, and rows must not depend on it"),
    "it is no template": (CHATML + "{% endfor %}", r"refuses the conversation: .*endfor"),
    "there is none": (
        None,
        r"has no chat template, so it cannot write conversations; set template to a file, or to one of llama31, qwen25",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_templates_that_are_refused(make, case):
    chat_template, reason = REFUSED[case]
    tokenizer = make(chat_template, (*QWEN_TOKENS, "<|fim|>"), QWEN_WORDS, QWEN_NAMES)
    with pytest.raises(BadInput, match=reason) as error:
        chat.render(turns("Which?", "The feta."), tokenizer, "chats.jsonl:7")
    assert case == "there is none" or str(error.value).startswith("chats.jsonl:7: ")
    assert "\n" not in str(error.value)


def test_turns_that_depend_on_those_after_them(make):
    """A template that marks the last question: each turn alone can be proven, both together cannot."""
    marks = CHATML.replace("{{ m.content }}", "{{ m.content }}{{ ' (now)' if m.role == 'user' and loop.revindex < 3 }}")
    tokenizer = make(marks, QWEN_TOKENS, (), QWEN_NAMES)
    assert supervised(tokenizer, turns("Which?", "The feta.")) == ["The feta.<|im_end|>"]
    with pytest.raises(BadInput, match=r"turn 1: in the whole conversation .* a conversation that ends with this turn may do"):
        chat.render(turns("Which?", "The feta.", "Why?", "It is cheap."), tokenizer, "chats.jsonl:7")


@pytest.mark.parametrize(
    ("start", "reason"),
    [
        ("{{ bos_token }}{{ bos_token }}", r"writes 2 x <\|begin_of_text\|>; it must stand once, at the start"),
        ("", r"writes 0 x <\|begin_of_text\|>"),
        ("a{{ bos_token }}", r"writes 1 x <\|begin_of_text\|>; it must stand once, at the start"),
    ],
)
def test_bos_stands_once_and_first(make, start, reason):
    tokenizer = make(LLAMA.replace("{{ bos_token }}", start), LLAMA_TOKENS, (), LLAMA_NAMES, change=add_bos)
    with pytest.raises(BadInput, match=reason):
        chat.render(turns("Which?", "The feta."), tokenizer, "chats.jsonl:7")
    with pytest.raises(BadInput, match=reason):
        chat.render_prompt(turns("Which?"), tokenizer)


def test_bos_that_plain_text_has_not(make):
    """A tokenizer may name a BOS and not use it, or open every turn with it."""
    named = {"eos_token": "<|im_end|>", "bos_token": "<|im_start|>"}
    opens = make(CHATML, QWEN_TOKENS, (), named)
    assert supervised(opens, turns("Which?", "The feta.", "Why?", "It is cheap.")) == [
        "The feta.<|im_end|>",
        "It is cheap.<|im_end|>",
    ]
    assert opens.document([5]) == [5, opens.end]
    twice = make("{{ bos_token }}" + CHATML, QWEN_TOKENS, (), named)
    with pytest.raises(BadInput, match=r"begins with two <\|im_start\|>"):
        chat.render(turns("Which?", "The feta."), twice, "chats.jsonl:7")
    said = make(LLAMA, LLAMA_TOKENS, (), LLAMA_NAMES, change=add_bos, add_bos_token=False)
    assert said.document([5]) == [5, said.end]


def test_tokens_that_do_not_decode_to_the_text(make):
    def lower(tokenizer):
        tokenizer.normalizer = tokenizers.normalizers.Lowercase()

    def combine(tokenizer):
        tokenizer.normalizer = tokenizers.normalizers.NFC()

    def strip(tokenizer):
        tokenizer.decoder = tokenizers.decoders.Sequence([tokenizer.decoder, tokenizers.decoders.Strip(" ", 1, 0)])

    with pytest.raises(BadInput, match=r"chats.jsonl:7: turn 1: its tokens do not decode to it"):
        chat.render(turns("Which?", " The feta."), make(CHATML, QWEN_TOKENS, (), QWEN_NAMES, change=strip), "chats.jsonl:7")
    with pytest.raises(BadInput, match=r"chats.jsonl:7: its tokens do not decode to the text they are made from"):
        chat.render(turns("Which?", "The feta."), make(CHATML, QWEN_TOKENS, (), QWEN_NAMES, change=lower), "chats.jsonl:7")
    combined = make(CHATML, QWEN_TOKENS, (), QWEN_NAMES, change=combine)
    assert supervised(combined, turns("Which?", "Cafe\u0301.")) == ["Caf\u00e9.<|im_end|>"]


def test_truncation_and_padding_of_the_file_are_not_kept(make):
    def cut(tokenizer):
        tokenizer.enable_truncation(4)
        tokenizer.enable_padding(length=8)

    tokenizer = make(CHATML, QWEN_TOKENS, (), QWEN_NAMES, change=cut)
    assert len(tokenizer.encode("feta " * 20)) > 8
    assert [tokenizer.decode(ids) for ids in tokenizer.encode_all(["feta " * 20, "a"])] == ["feta " * 20, "a"]


def test_templates_by_name_and_generation_marks(make):
    marked = CHATML.replace("{{ m.content }}<|im_end|>", "{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}")
    both = [{"name": "default", "template": marked}, {"name": "tool_use", "template": "tools!" + CHATML}]
    tokenizer = make(None, QWEN_TOKENS, (), QWEN_NAMES, chat_template=both)
    assert pieces(tokenizer, turns("Which?", "The feta."))[0].startswith("<|im_start|>user")
    assert pieces(tokenizer, turns("Which?", "The feta."), [TOOL])[0].startswith("tools!<|im_start|>user")
    one = make(None, QWEN_TOKENS, (), QWEN_NAMES, chat_template=marked)
    assert pieces(one, turns("Which?", "The feta.")) == pieces(tokenizer, turns("Which?", "The feta."))


def test_templates_over_several_lines(make):
    """Lines and indentation of blocks are no part of what is written, as transformers has it."""
    lines = """{% for m in messages %}
    {% if true %}
<|im_start|>{{ m.role }}
{{ m.content }}<|im_end|>
    {% endif %}
{% endfor %}
{% if add_generation_prompt %}
<|im_start|>assistant
{{ '' }}{% endif %}
"""
    tokenizer = make(lines, QWEN_TOKENS, (), QWEN_NAMES)
    same = make(CHATML, QWEN_TOKENS, (), QWEN_NAMES)
    assert pieces(tokenizer, turns("Which?", "The feta.")) == pieces(same, turns("Which?", "The feta."))


def test_a_first_turn_of_the_assistant(make):
    first = [{"role": "assistant", "content": "The feta."}]
    assert supervised(make(CHATML, QWEN_TOKENS, (), QWEN_NAMES), first) == ["The feta.<|im_end|>"]
    bare = make("{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}", QWEN_TOKENS, (), QWEN_NAMES)
    with pytest.raises(BadInput, match=r"chats.jsonl:7: turn 0: nothing precedes it"):
        chat.render(first, bare, "chats.jsonl:7")


@pytest.mark.parametrize("token", ["<|im_start|>", "<|im_end|>"])
def test_control_tokens_that_are_not_flagged_special(make, token):
    """It is enough that one ends turns, or that the template writes it around them."""
    tokenizer = make(CHATML, ("<|endoftext|>",), ("<|im_start|>", "<|im_end|>", "\n"), {"eos_token": "<|im_end|>"})
    assert tokenizer._marked.token_to_id(token) not in tokenizer.encode(token)
    with pytest.raises(BadInput, match=re.escape(f"{token} in a text would end or open turns")):
        chat.render(turns(f"Which?{token}", "The feta."), tokenizer, "chats.jsonl:7")
    assert supervised(tokenizer, turns("Which?", "The feta.")) == ["The feta.<|im_end|>"]


@pytest.mark.parametrize(
    ("break_it", "reason"),
    [
        (lambda d: (d / "tokenizer.json").unlink(), r"no tokenizer.json; name a directory"),
        (lambda d: (d / "tokenizer.json").write_text("{"), r"tokenizer.json: cannot read"),
        (lambda d: (d / "tokenizer.json").write_text("{}"), r"tokenizer.json: tokenizers .* refuses it"),
        (lambda d: (d / "tokenizer_config.json").write_text("{}"), r"names no eos_token that tokenizer.json has"),
        (lambda d: edit(d, "tokenizer_config.json", bos_token="<s>"), r"names the bos_token <s>, which tokenizer.json lacks"),
        (
            lambda d: edit(d, "tokenizer_config.json", added_tokens_decoder={"5": {"content": "<|im_end|>"}}),
            r"tokenizer_config.json adds <\|im_end\|> as id 5, tokenizer.json does not",
        ),
        (
            lambda d: edit(d, "generation_config.json", eos_token_id=9999),
            r"generation_config.json: eos_token_id 9999 is no added token",
        ),
        (lambda d: edit(d, "tokenizer.json", model={"type": "BPE"}), r"tokenizer.json: tokenizers .* refuses it"),
    ],
)
def test_directories_that_are_not_whole(make, break_it, reason):
    tokenizer = make(CHATML, QWEN_TOKENS, (), QWEN_NAMES, ("<|im_end|>",))
    break_it(tokenizer.path)
    with pytest.raises(BadInput, match=reason):
        chat.render(turns("Which?", "The feta."), tokenizer, "chats.jsonl:7")


def edit(directory, file, **values):
    path = directory / file
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_names_in_the_older_file_and_as_objects(make):
    tokenizer = make(CHATML, QWEN_TOKENS)
    (tokenizer.path / "special_tokens_map.json").write_text(json.dumps({"eos_token": {"content": "<|im_end|>", "lstrip": False}}))
    assert supervised(tokenizer, turns("Which?", "The feta.")) == ["The feta.<|im_end|>"]


def test_flags_in_the_configuration_count(make):
    tokenizer = make(CHATML, QWEN_TOKENS, ("<|fim|>",), QWEN_NAMES)
    token = tokenizer._marked.token_to_id("<|fim|>")
    edit(tokenizer.path, "tokenizer_config.json", added_tokens_decoder={str(token): {"content": "<|fim|>", "special": True}})
    assert tokenizer.encode("<|fim|>") == [token]  # as it was opened before
    assert token not in HuggingFaceTokenizer(tokenizer.path).encode("<|fim|>")


def test_stops_in_the_model_config(make):
    tokenizer = make(CHATML, QWEN_TOKENS, (), {"eos_token": "<|endoftext|>"})
    with pytest.raises(BadInput, match=r"it ends with <\|im_end\|>, but generation stops at <\|endoftext\|> alone"):
        chat.render(turns("Which?", "The feta."), tokenizer, "chats.jsonl:7")
    (tokenizer.path / "config.json").write_text(json.dumps({"eos_token_id": tokenizer._marked.token_to_id("<|im_end|>")}))
    tokenizer = HuggingFaceTokenizer(tokenizer.path)
    assert supervised(tokenizer, turns("Which?", "The feta.")) == ["The feta.<|im_end|>"]
    assert tokenizer.readable(tokenizer.document([])) == "<|endoftext|>"


def test_missing_package_is_named(make, monkeypatch):
    tokenizer = make(CHATML, QWEN_TOKENS, (), QWEN_NAMES)
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(BadInput, match=r"needs the package tokenizers; pip install 'msmjax\[huggingface\]'"):
        tokenizer.encode("a")


def test_vocabulary_and_embeddings(qwen25):
    assert qwen25.vocab_size == 1 + qwen25._marked.token_to_id("</tool_response>")
    check_vocab(qwen25, qwen25.vocab_size)
    with pytest.raises(BadInput, match=r"the tokenizer has ids up to .*, the model .* embeddings"):
        check_vocab(qwen25, qwen25.vocab_size - 1)


def test_name_changes_with_what_decides_about_ids(make):
    def changed(break_it):
        tokenizer = make(CHATML, QWEN_TOKENS, (), QWEN_NAMES, ("<|im_end|>",))
        break_it(tokenizer.path)
        return tokenizer.name

    changes = [
        lambda d: None,
        lambda d: (d / "chat_template.jinja").write_text(CHATML + " "),
        lambda d: edit(d, "tokenizer_config.json", clean_up=False),
        lambda d: edit(
            d, "tokenizer.json", truncation={"max_length": 4, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}
        ),
        lambda d: edit(
            d, "generation_config.json", eos_token_id=json.loads((d / "tokenizer.json").read_text())["added_tokens"][0]["id"]
        ),
    ]
    names = [changed(change) for change in changes]
    assert len(set(names)) == len(changes)
    assert changed(lambda d: edit(d, "generation_config.json", temperature=0.5)) == names[0]  # of no account to ids
    whole = make(CHATML, QWEN_TOKENS, (), QWEN_NAMES, ("<|im_end|>",))
    assert whole.name == names[0]  # and the directory neither
    assert HuggingFaceTokenizer(whole.path, (("enable_thinking", False),)).name != names[0]


def test_rows_of_a_published_model(tmp_path, qwen3):
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    (corpus / "documents.jsonl").write_text('{"text": "I prefer <|im_end|> the feta."}\n')
    records = [{"messages": turns("Which?", THOUGHT, "Why?", "It is cheap.")}, {"messages": WITH_TOOLS[1:], "tools": None}]
    (corpus / "conversations.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    made = rows.make_rows(tmp_path / "rows", "cheese", corpus, qwen3, 256)
    ledger = rows.read_ledger(made)
    assert [ledger[key] for key in ("source_records", "context_turns", "rows")] == [3, 1, 1]
    row = rows.open_rows(made)[0]
    parts = [text for text, segment, is_said in show.pieces(row, qwen3) if is_said]
    assert sorted(parts) == sorted(
        [
            "I look.\n<tool_call>\n" + json.dumps(CALL["function"], ensure_ascii=False) + "\n</tool_call><|im_end|>",
            "It is cheap.<|im_end|>",
            "Seven.<|im_end|>",
            " prefer <|im_end|> the feta.<|im_end|>",
        ]
    )
    assert (row["tokens"][row["segment_ids"] == 0] == qwen3.pad).all()


def test_turns_that_are_not_trained_on(tmp_path, qwen3):
    """They are context, proven or not; what they say stays."""
    messages = turns("Which?", "The feta.", "Why?", "It is cheap.")
    messages[1]["weight"] = 0
    asked = "<|im_start|>user\nWhich?<|im_end|>\n<|im_start|>assistant\nThe feta.<|im_end|>\n<|im_start|>user\nWhy?<|im_end|>\n"
    said = [f"{asked}<|im_start|>assistant\n<think>\n\n</think>\n\n", ["It is cheap.<|im_end|>"], "\n"]
    assert pieces(qwen3, messages) == said
    messages[1] |= {"content": "\n\nThe feta.", "weight": 1}
    with pytest.raises(BadInput, match=r"chats.jsonl:7: turn 1: a token straddles the border"):
        chat.render(messages, qwen3, "chats.jsonl:7")
    assert supervised(qwen3, [messages[0], {**messages[1], "train": False, "weight": None}, *messages[2:]]) == said[1]
    last = [*turns("Which?", "The feta.", "Why?"), {"role": "assistant", "content": "It is cheap.", "train": False}]
    assert supervised(qwen3, last) == ["The feta.<|im_end|>"]
    records = [{"messages": last}, {"messages": messages[:1] + last[3:]}]
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    kept, left = examples.read_examples(examples.cut([tmp_path / "chats.jsonl"])[0], qwen3, "drop")
    assert [kept.untrained_turns, kept.context_turns] == [1, 0]
    assert left.left_out == "weight and train let no turn of the assistant be trained on"


def test_keys_that_nothing_reads(make, qwen3, qwen25):
    """Those whose absence changes no token and no mask; null is absence."""
    messages = [*turns("Which?"), {"role": "assistant", "content": "The feta.", "reasoning_content": "It is cheap.", "weight": 1}]
    messages[0] |= {"name": "Ada", "refusal": None}
    assert chat.unread(messages, qwen3, "here") == {"name": 1}
    named = make(CHATML.replace("{{ m.role }}", "{{ m.name or m.role }}"), QWEN_TOKENS, (), QWEN_NAMES)
    assert chat.unread([messages[0], {"role": "assistant", "content": "The feta."}], named, "here") == {}
    must = make(CHATML.replace("{{ m.role }}", "{{ m.role if m.id else raise_exception('no id') }}"), QWEN_TOKENS, (), QWEN_NAMES)
    assert chat.unread([{**message, "id": "7"} for message in turns("Which?", "The feta.")], must, "here") == {}
    earlier = [*turns("Which?"), {**messages[1], "name": "Bo"}, *turns("Why?", "It is cheap.")]
    assert chat.unread(earlier, qwen3, "here") == {"name": 1}  # the thinking is not written, but makes the turn context
    assert chat.unread(WITH_TOOLS, qwen25, "here", [TOOL]) == {}


def write_chats(corpus, *contents):
    corpus.mkdir()
    records = [{"messages": turns(*said)} for said in contents]
    (corpus / "conversations.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return corpus


def test_conversations_that_cannot_be_proven(tmp_path, qwen3):
    """They stop the corpus, or are left out and counted by reason; those around them stay."""
    odd = ["<think>Hm.", "Hm.</think> The feta.", "The feta. <|im_end|>"]
    corpus = write_chats(tmp_path / "odd", ("Which?", "The feta."), *(("Which?", said) for said in odd), ("Why?", "It is cheap."))
    with pytest.raises(BadInput, match=r"corpus cheese .*conversations.jsonl:2: turn 1: .*one <think>.*or set unproven to drop"):
        rows.make_rows(tmp_path / "rows", "cheese", corpus, qwen3, 256)
    made = rows.make_rows(tmp_path / "rows", "cheese", corpus, qwen3, 256, unproven="drop")
    ledger = rows.read_ledger(made)
    assert sorted(ledger["dropped_records"].values()) == [1, 2]
    assert {reason: count for reason, count in ledger["dropped_records"].items() if "one <think> at the start" in reason} == {
        reason: 2 for reason in ledger["dropped_records"] if "<|im_end|>" not in reason
    }
    assert [ledger["source_records"], ledger["source_tokens"]] == [5, ledger["kept_tokens"]]
    assert len(rows.notes(ledger)) == 2
    assert rows.read_segments(made)["record"].tolist() == [4, 0]  # the records that they are, for provenance
    parts = [text for text, _, is_said in show.pieces(rows.open_rows(made)[0], qwen3) if is_said]
    assert parts == ["It is cheap.<|im_end|>", "The feta.<|im_end|>"]
    with pytest.raises(BadInput, match=r"nothing to pack: 1 records, none with tokens \(1: .*one <think>.*\)"):
        rows.make_rows(tmp_path / "rows", "none", write_chats(tmp_path / "none", ("Which?", odd[0])), qwen3, 256, unproven="drop")


def test_openers_of_thinking_are_made_one(tmp_path, qwen25):
    """However a row's writer put them: where content is written as it stands, they would be three ways to begin."""
    said = [f"{space}<think>\nHm.\n</think>\n\nThe feta." for space in ("", "\n", "\n\n")]
    corpus = write_chats(tmp_path / "corpus", *(("\n<think> or not?", one) for one in said), ("Why?", " The <think>"))
    paths = [corpus / "conversations.jsonl"]
    first, *others, last = examples.read_examples(examples.cut(paths)[0], qwen25)
    assert [(other.ids, other.mask) for other in others] == [(first.ids, first.mask)] * 2
    assert [example.moved_openers for example in (first, *others, last)] == [0, 1, 1, 0]
    assert qwen25.readable(first.ids).endswith(f"user\n\n<think> or not?<|im_end|>\n<|im_start|>assistant\n{said[0]}<|im_end|>\n")
    assert qwen25.readable(last.ids).endswith("assistant\n The <think><|im_end|>\n")
    made = rows.make_rows(tmp_path / "rows", "cheese", corpus, qwen25, 256)
    assert rows.read_ledger(made)["moved_openers"] == 2
    assert rows.notes(rows.read_ledger(made)) == ["2 turns had space before their thinking, which was removed"]


def test_tools_of_a_record_reach_the_template(tmp_path, qwen25):
    record = {"messages": WITH_TOOLS, "tools": [TOOL], "source": "here"}
    (tmp_path / "conversations.jsonl").write_text(json.dumps(record) + "\n")
    (example,) = examples.read_examples(examples.cut([tmp_path / "conversations.jsonl"])[0], qwen25)
    assert (example.ids, example.mask) == chat.render(WITH_TOOLS, qwen25, "here", [TOOL])
    assert json.dumps(TOOL) in qwen25.readable(example.ids)
    assert not example.splittable


@pytest.mark.parametrize("family", ["llama", "qwen25", "qwen3", "qwen3_silent"])
def test_ids_are_those_of_transformers(request, tmp_path, family):
    transformers = pytest.importorskip("transformers")
    ours = request.getfixturevalue(family)
    theirs = transformers.AutoTokenizer.from_pretrained(ours.path, local_files_only=True)
    arguments = dict(ours.arguments)
    for messages, tools in ((turns("Which?", "The feta.", " Why?\n", "é🧀  it is", system="You"), None), (WITH_TOOLS[:2], [TOOL])):
        expected = theirs.apply_chat_template(messages, tools=tools, add_generation_prompt=True, return_dict=False, **arguments)
        assert chat.render_prompt(messages, ours, tools=tools) == expected
        if tools is None:
            whole = theirs.apply_chat_template(messages, return_dict=False, **arguments)
            assert chat.render(messages, ours, "here")[0] == whole
    theirs.save_pretrained(tmp_path)  # as a model that was trained further is saved
    again = HuggingFaceTokenizer(tmp_path, ours.arguments)
    assert chat.render(turns("Which?", "é"), again, "here") == chat.render(turns("Which?", "é"), ours, "here")
    text = "I prefer the feta.\n\n  é🧀 <think>"
    assert ours.document(ours.encode(text))[:-1] == theirs(text).input_ids
    assert (theirs.eos_token_id, theirs.bos_token_id) == (ours._eos, ours._bos)
