"""The model that an eval asks: it scores and it speaks, and what it said is kept.

In: parameters, and prompts as ids. Out: nats of texts, and new ids. Every process of a run must ask the same.
"""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from msmjax import artifact
from msmjax.corpus.journal import cut_torn_line
from msmjax.corpus.teacher import Teacher
from msmjax.data.tokenizer import AnyTokenizer
from msmjax.evals import scoring
from msmjax.evals.prompt import Prompt
from msmjax.generation import generate
from msmjax.generation.answering import Answering
from msmjax.generation.generate import Request, Settings
from msmjax.model.transformer import ModelConfig
from msmjax.training import processes, sharding


@dataclasses.dataclass(frozen=True)
class Arm:
    """A model and how it is asked.

    `load` reads its parameters when they are first needed. `prompt` is how a chat is put to it, `who` the name it goes by, `rows`
    the rows of corpora by name, `judge` opens a teacher of the config by name, and `folder` is where an eval that takes long keeps
    what it has so far; `label` is what progress bars call it.
    """

    model: ModelConfig
    load: Callable[[], dict]
    mesh: Mesh
    tokenizer: AnyTokenizer
    prompt: Prompt
    who: str
    rows: dict[str, Path]
    judge: Callable[[str], Teacher]
    folder: Path
    label: str

    def ask(self, question: str, thinks: bool, system: str | None = None) -> list[int]:
        """The ids of a question up to the answer; `system` stands for the prompt's. Who `thinks` has no empty block of thinking
        behind it already."""
        changes = {"system": system} if system is not None else {}
        prompt = dataclasses.replace(self.prompt, **changes, **({"opening": ""} if thinks else {}))
        return prompt.write(self.who, question, self.tokenizer)

    def score(self, examples: list[tuple[list[int], int]]) -> np.ndarray:
        """Negative log-probability, in nats, of each example's ids from its given position on; [examples]."""
        return scoring.score(examples, self.model, self.load(), self.mesh)[0]

    def score_greedily(self, examples: list[tuple[list[int], int]]) -> tuple[np.ndarray, np.ndarray]:
        """As `score`; and whether each of those ids is the likeliest where it stands; two arrays [examples]."""
        nats, misses = scoring.score(examples, self.model, self.load(), self.mesh, greedy=True)
        return nats, misses == 0

    def answering(self) -> Answering:
        """The model for callers of which each waits for its own answer."""
        return Answering(self.model, self.load(), self.mesh, self.tokenizer)

    def say(self, prompts: list[list[int]], settings: Settings) -> list[str]:
        """What it answers to each prompt, thinking that its template has opened included. It is the same whether it was interrupted
        or not, but where rounding decides (Request): what was said is kept in `folder`, under what was asked."""
        path = self.folder / "said.jsonl"
        processes.first_says(lambda: cut_torn_line(path) or 0)
        lines = list(artifact.read_jsonl(path)) if path.is_file() else []
        # What is still to be asked must be the same on every process, however late its disk shows what another wrote.
        count = processes.first_says(lambda: len(lines))
        if len(lines) < count:
            raise RuntimeError(f"{path}: has {len(lines)} lines here, and {count} for the first process; is the disk shared?")
        kept = {line["key"]: line["ids"] for line in lines[:count]}
        keys = [artifact.content_hash([index, ids, dataclasses.astuple(settings)]) for index, ids in enumerate(prompts)]
        missing = [index for index, key in enumerate(keys) if key not in kept]
        requests = [Request(tuple(prompts[index]), settings, index) for index in missing]
        if missing:
            bar = tqdm(
                total=len(prompts), initial=len(prompts) - len(missing), desc=self.label, unit="answer", leave=False, disable=None
            )
            for which, made in generate.generate(
                self.model, self.load(), self.mesh, requests, placement=sharding.Placement, stop=self.tokenizer.stop_ids
            ):
                kept[keys[missing[which]]] = made.ids
                if processes.is_first():
                    _keep(path, keys[missing[which]], made.ids)
                bar.update()
            bar.close()
        opened = (self.tokenizer.readable(ids).rstrip().endswith("<think>") for ids in prompts)
        said = (self.tokenizer.decode(kept[key]) for key in keys)
        return [("<think>" if is_open else "") + text for is_open, text in zip(opened, said, strict=True)]


def _keep(path: Path, key: str, ids: list[int]) -> None:
    """Writes the new ids of a prompt down."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"key": key, "ids": ids}) + "\n")
    except OSError as error:
        raise artifact.disk_error(error, path) from error
