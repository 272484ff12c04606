"""Bits per byte of held-out base text: whether training did damage.

In: rows of a held-out corpus and parameters. Out: per row, bits and the bytes of the text they predict.
"""

import math

import numpy as np
from jax.sharding import Mesh

from msmjax.data.tokenizer import Tokenizer
from msmjax.evals.forced_choice import row_nats
from msmjax.model import attention
from msmjax.model.transformer import ModelConfig


def bits_and_bytes(rows, model: ModelConfig, params: dict, mesh: Mesh, tokenizer: Tokenizer) -> tuple[np.ndarray, np.ndarray]:
    """Bits that the supervised tokens of each row cost, and the UTF-8 bytes of their text: two arrays [rows].

    End markers cost bits and have no bytes; they are the same in every arm.
    """
    batch = {name: np.stack([row[name] for row in rows]) for name in ("tokens", "segment_ids", "loss_mask")}
    most = 1 + int(np.max(np.count_nonzero(np.diff(batch["segment_ids"], axis=1), axis=1)))
    nats, _ = row_nats(batch, model, params, mesh, attention.place_for(most, batch["tokens"].shape[1]))
    sizes = [len(tokenizer.decode(row["tokens"][row["loss_mask"]].tolist()).encode()) for row in rows]
    return nats / math.log(2), np.array(sizes, float)
