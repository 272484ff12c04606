"""The microworld's tokenizer: sentencepiece with byte fallback, trained on base text, and the markers its chats are rendered with.

In: texts. Out: `tokenizer.model`. Encoding then decoding gives back any text (but U+2581, sentencepiece's own sign for a
space, comes back as one); the markers are control symbols, which no text can produce. `AnyTokenizer` is what the rest of the
package asks of a tokenizer, this one or a published model's own (data/huggingface.py).
"""

import dataclasses
import functools
import io
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Protocol

import sentencepiece

from msmjax import artifact
from msmjax.artifact import BadInput

PAD, BOS, EOS, UNK = 0, 1, 2, 3
ROLES = ("system", "user", "assistant")
TRAINED = ("weight", "train")  # keys of a message that say whether it is trained on
END = "<|end|>"
_CONTROL = (*(f"<|{role}|>" for role in ROLES), END)


def is_trained(message: dict) -> bool:
    """Whether a turn is the assistant's, and no `weight: 0` (OpenAI's fine-tuning format) or `train: false` makes it context."""
    return message["role"] == "assistant" and all(message.get(key) in (None, 1) for key in TRAINED)


class AnyTokenizer(Protocol):
    """What every tokenizer can do. Conversations are given to it by data/chat.py, which has checked them."""

    path: Path  # where it was read from
    name: str  # changes when anything does that decides about ids
    vocab_size: int  # the largest id it can produce, and one
    pad: int  # an id that is never supervised
    end: int  # the id that ends the assistant's turn
    stop_ids: Collection[int]  # the ids after which generation is over; `end` is one
    roles: Collection[str]  # who can speak in its chats

    def encode(self, text: str) -> list[int]:
        """Ids of plain text: never a control token, whatever the text says."""

    def encode_all(self, texts: list[str]) -> list[list[int]]:
        """`encode` of many texts, on all cores."""

    def document(self, ids: list[int]) -> list[int]:
        """Ids of plain text as a whole document, with its beginning and its end."""

    def decode(self, ids: list[int]) -> str:
        """The text of ids; control tokens have none."""

    def readable(self, ids: list[int]) -> str:
        """The text of ids as a person should see it: control tokens by name."""

    def render(self, messages: list[dict], where: str, tools: list | None = None) -> tuple[list[int], list[bool]]:
        """Ids of a conversation and its loss mask; BadInput, naming `where`, for one whose mask it cannot vouch for."""

    def render_prompt(self, messages: list[dict], where: str, tools: list | None = None) -> list[int]:
        """Ids of a conversation up to where the assistant speaks."""

    def spelled(self, messages: list[dict]) -> int:
        """How many turns of a conversation that `render` accepts spell a control token, which is text there."""


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """A trained tokenizer and the file it came from (`path` alone decides equality).

    A chat is, with what is supervised underlined:

        <s> <|system|> text <|end|> <|user|> text <|end|> <|assistant|> text <|end|>
                                                                        ^^^^^^^^^^^^
    """

    path: Path
    pad = PAD

    @functools.cached_property
    def name(self) -> str:
        """Names the content of its file."""
        return f"sentencepiece-{artifact.content_hash(self.path.read_bytes())}"

    @functools.cached_property
    def _processor(self) -> sentencepiece.SentencePieceProcessor:
        return sentencepiece.SentencePieceProcessor(model_file=str(self.path))

    @property
    def vocab_size(self) -> int:
        return self._processor.vocab_size()

    @functools.cached_property
    def end(self) -> int:
        """Id of the end-of-turn marker."""
        return self._processor.piece_to_id(END)

    @property
    def stop_ids(self) -> tuple[int, ...]:
        return (EOS, self.end)

    @functools.cached_property
    def roles(self) -> dict[str, int]:
        """Role -> id of the marker that opens its turn."""
        return {role: self._processor.piece_to_id(f"<|{role}|>") for role in ROLES}

    def encode(self, text: str) -> list[int]:
        """Ids of plain text: never a control symbol, whatever the text says."""
        return self._processor.encode(text)

    def encode_all(self, texts: list[str]) -> list[list[int]]:
        """`encode` of many texts, on all cores."""
        return self._processor.encode(texts)

    def document(self, ids: list[int]) -> list[int]:
        """Ids of plain text between <s> and </s>."""
        return [BOS, *ids, EOS]

    def render(self, messages: list[dict], where: str, tools: list | None = None) -> tuple[list[int], list[bool]]:
        """Ids of a conversation and its loss mask: the assistant's text and its end-of-turn where it is trained on."""
        _refuse_tools(tools, where)
        ids, mask = [BOS], [False]
        for message in messages:
            supervised = is_trained(message)
            content = self.encode(message["content"])
            ids += [self.roles[message["role"]], *content, self.end]
            mask += [False, *[supervised] * (len(content) + 1)]
        return ids, mask

    def render_prompt(self, messages: list[dict], where: str, tools: list | None = None) -> list[int]:
        """Ids of a conversation up to the marker after which the assistant speaks."""
        _refuse_tools(tools, where)
        ids = [BOS]
        for message in messages:
            ids += [self.roles[message["role"]], *self.encode(message["content"]), self.end]
        return [*ids, self.roles["assistant"]]

    def spelled(self, messages: list[dict]) -> int:
        """None: what spells a marker is text like any other."""
        return 0

    def decode(self, ids: list[int]) -> str:
        """The text of ids; control symbols have none."""
        return self._processor.decode(ids)

    def readable(self, ids: list[int]) -> str:
        """The text of ids as a person should see it: control symbols by name, spaces where they are."""
        out, plain = [], []
        for token in [*ids, PAD]:
            if self._processor.is_control(token) or token == PAD:
                # Decoding drops the space before a first word, which ids that start inside a text do have.
                lead = " " if plain and not out and self._processor.id_to_piece(plain[0]).startswith("▁") else ""
                out.append(lead + self._processor.decode(plain) if plain else "")
                out.append(self._processor.id_to_piece(token))
                plain = []
            else:
                plain.append(token)
        return "".join(out[:-1])


def _refuse_tools(tools: list | None, where: str) -> None:
    if tools:
        raise BadInput(f"{where}: 'tools' need a model whose chat template renders them; the microworld's has none")


def train(texts: Iterable[str], vocab_size: int, path: Path) -> None:
    """Trains a tokenizer on `texts` and writes it to `path`; the same texts give the same bytes.

    Raises BadInput where the texts do not carry a vocabulary of that size.
    """
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts),
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab_size,
            byte_fallback=True,
            normalization_rule_name="identity",  # with the next line: lossless
            remove_extra_whitespaces=False,
            control_symbols=list(_CONTROL),
            pad_id=PAD,
            bos_id=BOS,
            eos_id=EOS,
            unk_id=UNK,
            num_threads=1,  # more would be faster and not deterministic
            max_sentence_length=1 << 16,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise BadInput(f"vocab_size={vocab_size}: sentencepiece refuses ({str(error).splitlines()[-1].strip()})") from None
    path.write_bytes(model.getvalue())
