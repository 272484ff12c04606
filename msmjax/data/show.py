"""Rows as a person should see them: text, document borders, and which tokens are supervised.

In: rows. Out: pieces `(text, segment, supervised)` for the report, and coloured text in the terminal.
"""

import itertools

import numpy as np

from msmjax.data.tokenizer import AnyTokenizer

Piece = tuple[str, int, bool]


def pieces(row: dict[str, np.ndarray], tokenizer: AnyTokenizer) -> list[Piece]:
    """The row's runs of tokens that share a segment and are all supervised or all not, in order; padding is one piece."""
    keys = np.stack([row["segment_ids"], row["loss_mask"].astype(np.int32)])
    borders = [0, *(np.flatnonzero((keys[:, 1:] != keys[:, :-1]).any(0)) + 1).tolist(), keys.shape[1]]
    out = []
    for start, end in itertools.pairwise(borders):
        segment, supervised = int(keys[0, start]), bool(keys[1, start])
        text = tokenizer.readable(row["tokens"][start:end].tolist()) if segment else f"({end - start} padding)"
        out.append((text, segment, supervised))
    return out


def as_row(ids: list[int], mask: list[bool]) -> dict[str, np.ndarray]:
    """A row of one document, which holds nothing else."""
    return {"tokens": np.array(ids), "segment_ids": np.ones(len(ids), np.int32), "loss_mask": np.array(mask)}


def coloured(row: dict[str, np.ndarray], tokenizer: AnyTokenizer):
    """The row as rich's text: each document on a new line, supervised text in bold green."""
    from rich.text import Text

    text, last = Text(), 1
    for piece, segment, is_supervised in pieces(row, tokenizer):
        if segment != last:
            text.append("\n")
        text.append(piece, style="bold green" if is_supervised else "dim" if segment == 0 else "")
        last = segment
    return text


def print_batch(rows: dict[str, np.ndarray], tokenizer: AnyTokenizer) -> None:
    """Prints a batch to the terminal: a rule before each row, supervised text in bold green."""
    from rich.console import Console

    console = Console(highlight=False)
    for index in range(len(rows["tokens"])):
        row = {name: array[index] for name, array in rows.items()}
        supervised, padding = int(row["loss_mask"].sum()), int((row["segment_ids"] == 0).sum())
        console.rule(f"row {index}: {row['segment_ids'].max()} documents, {supervised} tokens supervised, {padding} padding")
        console.print(coloured(row, tokenizer), soft_wrap=True)
    console.print("supervised tokens are bold green", style="dim")
