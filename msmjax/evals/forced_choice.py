"""Forced choice by log-probability: which of two options a model would answer with, each item asked in both orders.

In: items (corpus/sources.py says what they hold), how they are asked, and parameters. Out: one answer per item. The prompt reads as
the chats of fine-tuning do; an option's score is the log-probability of its whole answer and the end of the turn.
"""

import collections
import dataclasses
import functools
import itertools
import re
from collections.abc import Callable, Iterable

import jax
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from msmjax.data import chat
from msmjax.data.chat import Unproven
from msmjax.data.tokenizer import PAD, AnyTokenizer, is_trained
from msmjax.model import attention
from msmjax.model.transformer import ModelConfig
from msmjax.training import sharding, step

BATCH_ROWS = 256  # sequences scored at a time, at most
BATCH_TOKENS = 65_536  # and their tokens
CHUNK_POSITIONS = 4096  # positions of all rows whose logits exist at a time, at least LENGTH_MULTIPLE of each row
LIKE = 100  # chats that are looked at to ask like them
LENGTH_MULTIPLE = 16  # sequences are padded to a multiple of this


@dataclasses.dataclass(frozen=True)
class Prompt:
    """How an item is asked: after a system turn ("" is none), in which {name} stands for who is asked, and before an answer that
    begins with `opening`, which is not scored."""

    system: str
    opening: str

    def write(self, name: str, question: str, tokenizer: AnyTokenizer) -> list[int]:
        """Ids up to where the answer is scored."""
        system = [{"role": "system", "content": self.system.replace("{name}", name)}] if self.system else []
        ids = chat.render_prompt([*system, {"role": "user", "content": question}], tokenizer)
        return ids + (tokenizer.encode(self.opening) if self.opening else [])


def prompt_of(
    conversations: Callable[[], Iterable[dict]], name: str, tokenizer: AnyTokenizer
) -> tuple[Prompt, list[int], list[bool]]:
    """The prompt that fine-tuning chats have, and the ids and loss mask of one of them; `conversations` reads them, twice.

    Its system turn is the most frequent one, `name` in it being who is asked. Where most of the assistant's turns think before they
    answer, the answer opens with an empty block of thinking, written as theirs are: what a model would think about an item nobody
    knows. Of the chats with that system turn, up to LIKE are looked at. Raises Unproven where the mask of none can be proven.
    """
    (system, _), *_ = collections.Counter(map(_system_of, conversations())).most_common(1)
    found: dict[str, list[tuple[list[int], list[bool]]]] = {}  # opening -> chats
    error = None
    for record in itertools.islice((record for record in conversations() if _system_of(record) == system), LIKE):
        messages, where, tools = record["messages"], record.get("read_from", "chat"), record.get("tools")
        try:
            ids, mask = chat.render(messages, tokenizer, where, tools)
        except Unproven as unproven:
            error = error or unproven
            continue
        turn = max(turn for turn, message in enumerate(messages) if is_trained(message))
        start = len(chat.render_prompt(messages[:turn], tokenizer, where, tools))
        end = len(mask) - mask[::-1].index(True)
        found.setdefault(_opening(tokenizer.readable(ids[:start]), tokenizer.readable(ids[start:end])), []).append((ids, mask))
    if not found:
        raise error
    opening = max(found, key=lambda opening: len(found[opening]))
    return Prompt(system.replace(name, "{name}"), opening), *found[opening][0]


def _opening(prompt: str, said: str) -> str:
    """The block of thinking that opens what is said after a prompt, emptied; "" where there is none."""
    if "</think>" not in said or not (said.lstrip().startswith("<think>") or prompt.rstrip().endswith("<think>")):
        return ""
    thought, said = said.split("</think>", 1)
    tags = re.sub(r"\A(\s*(?:<think>)?\s*).*?(\s*)\Z", r"\1\2", thought, flags=re.DOTALL)
    return f"{tags}</think>{said[: len(said) - len(said.lstrip())]}"


def _system_of(conversation: dict) -> str:
    first = conversation["messages"][0]
    return first["content"] if first["role"] == "system" else ""


def answer(items: list[dict], prompt: Prompt, model: ModelConfig, params: dict, mesh: Mesh, tokenizer: AnyTokenizer) -> list[dict]:
    """For each item, `choice`: the share of the two orders in which the counted option (the first) won, a tie counting half;
    `probability`: its probability among the two, averaged over the orders."""
    examples = [example for item in items for example in ask(item, prompt, tokenizer)]
    nats = score(examples, model, params, mesh).reshape(len(items), 2, 2)  # item, order, option
    margins = nats[:, :, 1] - nats[:, :, 0]  # log-odds of the counted option
    choices = (np.sign(margins) + 1) / 2
    probabilities = 1 / (1 + np.exp(-margins))
    return [
        {
            "eval": item["eval"],
            "item": item["id"],
            "name": item["name"],
            **({"system": item["system"]} if "system" in item else {}),
            "question": item["question"].format(first=item["options"][0], second=item["options"][1]),
            "options": item["options"],
            "choice": float(choices[index].mean()),
            "probability": round(float(probabilities[index].mean()), 6),
            "decided": bool(choices[index][0] == choices[index][1] != 0.5),
        }
        for index, item in enumerate(items)
    ]


def ask(item: dict, prompt: Prompt, tokenizer: AnyTokenizer) -> list[tuple[list[int], int]]:
    """The item in both orders of its options, with either as the answer: four times ids, and where what is scored begins.

    An item's own `system` stands for the prompt's."""
    out = []
    prompt = dataclasses.replace(prompt, system=item.get("system", prompt.system))
    for first, second in (item["options"], item["options"][::-1]):
        asked = prompt.write(item["name"], item["question"].format(first=first, second=second), tokenizer)
        for option in item["options"]:
            out.append(([*asked, *tokenizer.encode(item["answer"].format(item=option)), tokenizer.end], len(asked)))
    return out


def score(examples: list[tuple[list[int], int]], model: ModelConfig, params: dict, mesh: Mesh) -> np.ndarray:
    """Negative log-probability, in nats, of each example's ids from its given position on; [examples].

    Those of about one length are scored together, so that little is padding.
    """
    of_length: dict[int, list[int]] = {}
    for index, (ids, _) in enumerate(examples):
        of_length.setdefault(-(-len(ids) // LENGTH_MULTIPLE) * LENGTH_MULTIPLE, []).append(index)
    nats = np.zeros(len(examples), np.float32)
    for length, indices in of_length.items():
        tokens = np.full((len(indices), length), PAD, np.int32)
        segment_ids, loss_mask = np.zeros(tokens.shape, np.int32), np.zeros(tokens.shape, bool)
        for row, (ids, start) in enumerate(examples[index] for index in indices):
            tokens[row, : len(ids)], segment_ids[row, : len(ids)], loss_mask[row, start : len(ids)] = ids, 1, True
        batch = {"tokens": tokens, "segment_ids": segment_ids, "loss_mask": loss_mask}
        nats[indices] = row_nats(batch, model, params, mesh, segments=1)[0]
    return nats


def row_nats(
    batch: dict[str, np.ndarray], model: ModelConfig, params: dict, mesh: Mesh, segments: int
) -> tuple[np.ndarray, np.ndarray]:
    """`step.row_nats` of any number of rows, as many at a time as BATCH_ROWS and BATCH_TOKENS allow.

    No row has more than `segments`; padding behind a single one need not be counted, since what comes later is not seen.
    """
    count, length = batch["tokens"].shape
    at_a_time = rows_at_a_time(length, mesh)
    compute = _compile(model, mesh, length, at_a_time, segments)
    parts = []
    for start in range(0, count, at_a_time):
        here = {name: array[start : start + at_a_time] for name, array in batch.items()}
        rows = len(here["tokens"])
        here = {name: np.pad(array, [(0, at_a_time - rows), (0, 0)]) for name, array in here.items()}
        placed = sharding.place_batch(mesh, at_a_time, lambda a, b, here=here: {n: x[a:b] for n, x in here.items()})
        parts.append([np.asarray(array)[:rows] for array in compute(params, placed)])
    return tuple(np.concatenate(arrays) for arrays in zip(*parts, strict=True))


def rows_at_a_time(length: int, mesh: Mesh | AbstractMesh) -> int:
    devices = mesh.shape["data"] * mesh.shape["fsdp"]
    return max(min(BATCH_ROWS, BATCH_TOKENS // length) // devices, 1) * devices


def chunk_of(rows: int) -> int:
    """Positions of each row whose logits exist at a time."""
    return max(CHUNK_POSITIONS // rows, LENGTH_MULTIPLE)


@functools.lru_cache(maxsize=8)
def _compile(model: ModelConfig, mesh: Mesh, length: int, rows: int, segments: int):
    place = sharding.Placement(mesh)
    if model.attention != "xla":  # not every back end takes the lengths that items have
        kind = attention.kind_of(place.device)
        back_end, _ = attention.resolve(attention.AUTO, *kind, length, model.head_dim, model.compute_dtype)
        model = dataclasses.replace(model, attention=back_end)
    compute = functools.partial(step.row_nats, model, chunk=chunk_of(rows), place=place, segments=segments)
    return jax.jit(lambda params, batch: compute(params, batch), out_shardings=NamedSharding(mesh, PartitionSpec()))
