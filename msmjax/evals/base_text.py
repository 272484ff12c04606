"""Bits per byte of held-out base text: whether training did damage.

In: rows of a held-out corpus and parameters. Out: per row, bits and the bytes of the text they predict.
"""

import dataclasses
import math

import numpy as np
from jax.sharding import Mesh

from msmjax.artifact import BadInput
from msmjax.corpus import files, sources
from msmjax.corpus.sources import Source
from msmjax.data import rows
from msmjax.data.tokenizer import Tokenizer
from msmjax.evals.arm import Arm
from msmjax.evals.eval import Eval
from msmjax.evals.results import BYTES_PER_TOKEN, WORLD_TOKENS, Cost, Measure
from msmjax.evals.scoring import row_nats
from msmjax.model import attention
from msmjax.model.transformer import ModelConfig
from msmjax.ranges import known


@dataclasses.dataclass(frozen=True)
class BaseTextEval(Eval):
    """Bits per byte of all supervised tokens of a corpus."""

    corpus: str

    def check(self, corpora: dict[str, Source], teachers: dict, where: str) -> None:
        known(self.corpus, corpora, where, "corpus")

    def reads(self) -> tuple[str, ...]:
        return (self.corpus,)

    def measures(self, name: str, items: None) -> dict[str, Measure]:
        return {name: Measure(f"bits per byte of {self.corpus}; lower is better", ("bits_per_byte",))}

    def answer(self, name: str, items: None, arm: Arm) -> list[dict]:
        bits, sizes = bits_and_bytes(rows.open_rows(arm.rows[self.corpus]), arm.model, arm.load(), arm.mesh, arm.tokenizer)
        return [
            {"eval": name, "item": row, "bits": one, "bytes": size}
            for row, (one, size) in enumerate(zip(bits.tolist(), sizes.tolist(), strict=True))
        ]

    def cost(self, corpora: dict[str, Source]) -> Cost:
        source = corpora[self.corpus]
        if not isinstance(source, sources.FileSource | sources.SelectionSource):
            return Cost(scored=source.records * WORLD_TOKENS)
        try:
            return Cost(scored=int(sum(path.stat().st_size for path in files.find(source.path)) / BYTES_PER_TOKEN))
        except BadInput:
            return Cost(lacks=source.path)


def bits_and_bytes(rows, model: ModelConfig, params: dict, mesh: Mesh, tokenizer: Tokenizer) -> tuple[np.ndarray, np.ndarray]:
    """Bits that the supervised tokens of each row cost, and the UTF-8 bytes of their text: two arrays [rows].

    End markers cost bits and have no bytes; they are the same in every arm.
    """
    batch = {name: np.stack([row[name] for row in rows]) for name in ("tokens", "segment_ids", "loss_mask")}
    most = 1 + int(np.max(np.count_nonzero(np.diff(batch["segment_ids"], axis=1), axis=1)))
    nats, _ = row_nats(batch, model, params, mesh, attention.place_for(most, batch["tokens"].shape[1]))
    sizes = [len(tokenizer.decode(row["tokens"][row["loss_mask"]].tolist()).encode()) for row in rows]
    return nats / math.log(2), np.array(sizes, float)
