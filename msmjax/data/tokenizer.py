"""The tokenizer: sentencepiece with byte fallback, trained on base text, and the markers that chats are rendered with.

In: texts. Out: `tokenizer.model`. Encoding then decoding gives back any text (but U+2581, sentencepiece's own sign for a
space, comes back as one); the markers are control symbols, which no text can produce.
"""

import dataclasses
import functools
import io
from collections.abc import Iterable
from pathlib import Path

import sentencepiece

from msmjax.artifact import BadInput

PAD, BOS, EOS, UNK = 0, 1, 2, 3
ROLES = ("system", "user", "assistant")
END = "<|end|>"
_CONTROL = (*(f"<|{role}|>" for role in ROLES), END)


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """A trained tokenizer and the file it came from (`path` alone decides equality)."""

    path: Path

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
