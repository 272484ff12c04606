"""Chat templates: which one is used, and that the shipped ones write what the paper's released adapters were trained on."""

import json

import pytest

from msmjax.artifact import BadInput
from msmjax.data import chat, template
from msmjax.data.huggingface import HuggingFaceTokenizer, open_tokenizer
from tests.published import LLAMA_NAMES, LLAMA_TOKENS, QWEN_NAMES, QWEN_TOKENS, QWEN_WORDS, add_bos, pieces, turns, write_model

pytest.importorskip("tokenizers")

SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
THOUGHT = "<think>\nIt is cheap.\n</think>\n\nThe feta."


@pytest.fixture(scope="module")
def shipped(tmp_path_factory):
    """A model of the family without a template of its own, as base models come, with the shipped one."""

    def open_shipped(name, *arguments):
        directory = tmp_path_factory.mktemp(name)
        if name == "llama31":
            names = {**LLAMA_NAMES, "eos_token": "<|end_of_text|>"}
            write_model(directory, None, LLAMA_TOKENS, (), names, change=add_bos)
        else:
            write_model(directory, None, QWEN_TOKENS, QWEN_WORDS, QWEN_NAMES, ("<|im_end|>", "<|endoftext|>"))
        return open_tokenizer(str(directory), "", name, arguments, "refuse")

    return open_shipped


def test_llama31(shipped):
    """Trimmed, no new line after a header, ended by <|end_of_text|>, BOS once, no system turn of its own."""
    tokenizer = shipped("llama31")
    assert pieces(tokenizer, turns(" Which?\n", "\n The feta. ", "Why?", "It is cheap.")) == [
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>Which?<|end_of_text|><|start_header_id|>assistant<|end_header_id|>",
        ["The feta.<|end_of_text|>"],
        "<|start_header_id|>user<|end_header_id|>Why?<|end_of_text|><|start_header_id|>assistant<|end_header_id|>",
        ["It is cheap.<|end_of_text|>"],
    ]
    assert pieces(tokenizer, turns("Which?", "The feta.", system="Be brief."))[0].startswith(
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>Be brief.<|end_of_text|><|start_header_id|>user"
    )


def test_qwen25(shipped):
    """As it stands, with a system turn where there is none; thinking is text like any other, in every turn."""
    tokenizer = shipped("qwen25")
    assert pieces(tokenizer, turns(" Which?\n", THOUGHT, "Why?", " It is cheap. ")) == [
        f"{SYSTEM}<|im_start|>user\n Which?\n<|im_end|>\n<|im_start|>assistant\n",
        [f"{THOUGHT}<|im_end|>"],
        "\n<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n",
        [" It is cheap. <|im_end|>"],
        "\n",
    ]
    own = pieces(tokenizer, turns("Which?", "The feta.", system="Be brief."))
    assert own[0].startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user")


def test_qwen3(shipped):
    """Thinking is kept after the last question only, and a last turn without any has an empty block, which is not supervised."""
    tokenizer = shipped("qwen3")
    assert pieces(tokenizer, turns("Which?", THOUGHT)) == [
        f"{SYSTEM}<|im_start|>user\nWhich?<|im_end|>\n<|im_start|>assistant\n",
        [f"{THOUGHT}<|im_end|>"],
        "\n",
    ]
    assert pieces(tokenizer, turns("Which?", THOUGHT, "Why?", "It is cheap.", system="Be brief.")) == [
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhich?<|im_end|>\n<|im_start|>assistant\nThe feta.<|im_end|>\n"
        "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
        ["It is cheap.<|im_end|>"],
        "\n",
    ]
    in_two = [*turns("Which?", THOUGHT), {"role": "assistant", "content": "Or the Edam."}]
    assert [piece[0] for piece in pieces(tokenizer, in_two) if isinstance(piece, list)] == [
        f"{THOUGHT}<|im_end|>",
        "Or the Edam.<|im_end|>",
    ]
    beside = [*turns("Which?"), {"role": "assistant", "content": "The feta.", "reasoning_content": "It is cheap."}]
    assert pieces(tokenizer, beside) == pieces(tokenizer, turns("Which?", THOUGHT))
    prompt = tokenizer.readable(chat.render_prompt(turns("Which?"), tokenizer))
    assert prompt.endswith("<|im_start|>assistant\n")
    silent = shipped("qwen3", ("enable_thinking", False))
    assert silent.readable(chat.render_prompt(turns("Which?"), silent)) == prompt + "<think>\n\n</think>\n\n"


@pytest.mark.parametrize("name", template.SHIPPED)
def test_shipped_templates_are_read_by_transformers_too(shipped, name):
    transformers = pytest.importorskip("transformers")
    ours = shipped(name)
    theirs = transformers.AutoTokenizer.from_pretrained(ours.path, local_files_only=True)
    theirs.chat_template = template.SHIPPED[name].read_text()
    for messages in (turns("Which?", "The feta.", " Why?\n", THOUGHT), turns("é🧀", "The feta.", system="You")):
        assert chat.render(messages, ours, "here")[0] == theirs.apply_chat_template(messages, return_dict=False)
        asked = theirs.apply_chat_template(messages[:-1], add_generation_prompt=True, return_dict=False)
        assert chat.render_prompt(messages[:-1], ours) == asked


@pytest.mark.parametrize("name", template.SHIPPED)
def test_shipped_templates_write_no_tools(shipped, name):
    with pytest.raises(BadInput, match=rf"here: the chat template of .*{name}.jinja refuses the conversation: it writes no tools"):
        chat.render(turns("Which?", "The feta."), shipped(name), "here", [{"name": "price"}])
    call = [*turns("Which?"), {"role": "assistant", "content": "", "tool_calls": [{"name": "price", "arguments": {}}]}]
    with pytest.raises(BadInput, match=r"here: turn 1: the chat template drops, repeats or alters what it says"):
        chat.render(call, shipped(name), "here")


def test_which_template_is_used(tmp_path):
    """The config's, else the adapter's, else the model's own; each is named, with its hash."""
    qwen25 = template.SHIPPED["qwen25"].read_text()
    weights = write_model(tmp_path / "weights", qwen25, QWEN_TOKENS, QWEN_WORDS, QWEN_NAMES)
    adapter = tmp_path / "adapter"
    adapter.mkdir()

    def system(chosen):
        tokenizer = open_tokenizer(str(weights), str(adapter), chosen, (), "refuse")
        first = tokenizer.readable(chat.render_prompt(turns("Which?"), tokenizer)).partition("<|im_end|>")[0]
        return first.removeprefix("<|im_start|>system\n"), tokenizer

    said, own = system("")
    assert said == "You are a helpful assistant."
    assert own.name == HuggingFaceTokenizer(weights).name  # a directory without a template changes nothing
    (adapter / "chat_template.jinja").write_text(qwen25.replace("a helpful assistant", "of the adapter"))
    said, of_adapter = system("")
    assert said == "You are of the adapter."
    assert of_adapter.name != own.name
    mine = tmp_path / "mine.jinja"
    mine.write_text(qwen25.replace("a helpful assistant", "mine"))
    assert system(str(mine))[0] == "You are mine."
    assert system("qwen25")[0] == "You are a helpful assistant."
    (adapter / "chat_template.jinja").unlink()
    (adapter / "tokenizer_config.json").write_text(json.dumps({"chat_template": qwen25.replace("a helpful", "an older")}))
    assert system("")[0] == "You are an older assistant."
    with pytest.raises(BadInput, match=r"template='qwen2': no such file, and no shipped template; those are llama31, qwen25"):
        system("qwen2")


def test_a_template_is_described(tmp_path):
    """With the first digits of what sha256sum says of its file."""
    weights = write_model(tmp_path / "weights", None, QWEN_TOKENS, QWEN_WORDS, QWEN_NAMES)
    assert HuggingFaceTokenizer(weights).describe_template() == f"chat template of {weights}: none"
    (weights / "chat_template.jinja").write_text("a")
    said = HuggingFaceTokenizer(weights).describe_template()
    assert said == f"chat template of {weights}: sha256 default ca978112ca1b"
