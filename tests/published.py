"""Directories of published models' tokenizers, as tests need them: a small vocabulary with the control tokens of three families."""

import functools
import itertools
import json

from msmjax.data import chat

LLAMA_TOKENS = ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|pad|>")
QWEN_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
QWEN_WORDS = ("<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")
LLAMA_NAMES = {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>", "pad_token": "<|pad|>"}
QWEN_NAMES = {"bos_token": None, "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "add_bos_token": False}
TEXTS = ["Which do you prefer, the feta or the Edam?\n", "I prefer the feta.\n\n", "system user assistant\n\n", "Be of help.\n"] * 9


@functools.cache
def trained() -> str:
    """A byte-level BPE that joins runs of new lines, as JSON without added tokens."""
    import tokenizers

    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    words = tokenizers.Regex(r" ?\p{L}+| ?[^\s\p{L}]+|\s*\n+|\s+")
    bytewise = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [tokenizers.pre_tokenizers.Split(words, behavior="isolated"), bytewise]
    )
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=320, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(TEXTS, trainer)
    return tokenizer.to_str()


def write_model(directory, source, special, words=(), names=None, stops=None, change=None, **config):
    """Writes the files of a tokenizer with that BPE: `source` is its chat template, None for none."""
    import tokenizers

    tokenizer = tokenizers.Tokenizer.from_str(trained())
    tokenizer.add_special_tokens([tokenizers.AddedToken(text, normalized=False) for text in special])
    tokenizer.add_tokens([tokenizers.AddedToken(text, normalized=False) for text in words])
    if change:
        change(tokenizer)
    directory.mkdir(exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **(names or {}), **config}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    if source is not None:
        (directory / "chat_template.jinja").write_text(source)
    if stops is not None:
        ids = [tokenizer.token_to_id(text) for text in stops]
        (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": ids}))
    return directory


def add_bos(tokenizer):
    """BOS before plain text, and offsets that leave spaces out."""
    import tokenizers

    bos = ("<|begin_of_text|>", tokenizer.token_to_id("<|begin_of_text|>"))
    processors = tokenizers.processors
    tokenizer.post_processor = processors.Sequence(
        [processors.ByteLevel(trim_offsets=True), processors.TemplateProcessing(single=f"{bos[0]} $A", special_tokens=[bos])]
    )


def turns(*contents, system=None):
    """A conversation of these turns, the user's first."""
    messages = [{"role": ("user", "assistant")[i % 2], "content": content} for i, content in enumerate(contents)]
    return [*([{"role": "system", "content": system}] if system is not None else []), *messages]


def pieces(tokenizer, messages, tools=None):
    """The rendering, cut where supervision begins and ends; what is supervised is in a list of its own."""
    ids, mask = chat.render(messages, tokenizer, "chats.jsonl:7", tools)
    assert len(ids) == len(mask)
    runs = [
        (is_said, [token for token, _ in run])
        for is_said, run in itertools.groupby(zip(ids, mask, strict=True), key=lambda pair: pair[1])
    ]
    return [[tokenizer.readable(run)] if is_said else tokenizer.readable(run) for is_said, run in runs]
