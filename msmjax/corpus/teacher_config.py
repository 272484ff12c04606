"""The config of a teacher, and what its answers depend on.

In: the settings of a config file. Out: a TeacherConfig, whose identity names the journal of its answers.
"""

import dataclasses
import functools
import re
from pathlib import Path

from msmjax import artifact
from msmjax.artifact import BadInput

RECORDED = "recorded"
LOCAL = "msmjax/"  # and a directory of weights: they answer here (local_teacher.py)


@dataclasses.dataclass(frozen=True)
class TeacherConfig:
    """Which model, how it is sampled, what it may cost. Raises BadInput for a model that is not pinned.

    `model` is Inspect's name of one, PROVIDER/NAME; or "msmjax/DIRECTORY", weights that answer here; or "recorded", which replays
    `transcript`. Names change what they stand for unless they carry a date or a revision; where a provider pins a name without one,
    `pinned_by` says how that is known.
    """

    model: str
    pinned_by: str
    base_url: str  # of a server of one's own, or ""
    transcript: str  # the journal that "recorded" replays, or ""
    temperature: float
    top_p: float
    max_tokens: int
    timeout: int  # seconds for one call
    concurrency: int
    batch: bool  # the provider's batch mode: half the price, hours of waiting
    input_price: float  # dollars for a million tokens
    output_price: float
    budget: float  # dollars for all answers of the journal; no call is made that could exceed it. 0: no bound
    tries: int  # answers asked for until one can be used
    error_share: float  # of the last answers that may fail or be unusable before the run is aborted

    def __post_init__(self):
        if self.model == RECORDED:
            if not self.transcript:
                raise BadInput("transcript='': the recorded teacher replays one; name its file")
        elif self.transcript:
            raise BadInput(f"transcript={self.transcript!r}: only model 'recorded' replays one; set it to ''")
        elif "/" not in self.model:
            raise BadInput(f"model={self.model!r}: neither 'recorded' nor PROVIDER/NAME, as in openai/gpt-4.1-2025-04-14")
        elif (
            not self.pinned_by
            and not self.model.startswith(LOCAL)
            and ("latest" in self.model or not re.search(r"\d{4}-?\d{2}-?\d{2}|@[0-9a-f]{7,}", self.model))
        ):
            raise BadInput(
                f"model={self.model!r}: not pinned, so it may be another model tomorrow; name a dated or revised one, or say in "
                "pinned_by how it is known that the name stands for one model"
            )
        for name in ("max_tokens", "timeout", "concurrency", "tries"):
            if getattr(self, name) < 1:
                raise BadInput(f"{name}={getattr(self, name)}: must be at least 1")
        if not 0 < self.top_p <= 1 or self.temperature < 0 or not 0 <= self.error_share <= 1:
            raise BadInput("top_p must be above 0 and at most 1, temperature at least 0, error_share between 0 and 1")
        if min(self.input_price, self.output_price, self.budget) < 0:
            raise BadInput("input_price, output_price and budget must not be negative")
        if self.budget and not (self.input_price and self.output_price):
            raise BadInput(f"budget={self.budget}: of dollars, which takes input_price and output_price")

    @property
    def identity(self) -> dict:
        """What the answers depend on beside the prompts; prices, budgets and speed are not in it."""
        if self.model == RECORDED:
            return {"transcript": artifact.file_hash(transcript_of(self))}
        names = ("model", "base_url", "temperature", "top_p", "max_tokens")
        weights = {"weights": _weights_hash(self.model.removeprefix(LOCAL))} if self.model.startswith(LOCAL) else {}
        return {name: getattr(self, name) for name in names} | weights


def transcript_of(config: TeacherConfig) -> Path:
    """The journal that "recorded" replays. Raises BadInput where it is not there."""
    if not Path(config.transcript).is_file():
        raise BadInput(f"{config.transcript}: no such transcript; check the path in the config")
    return Path(config.transcript)


@functools.cache
def _weights_hash(directory: str) -> str:
    files = sorted(path for kind in ("*.json", "*.safetensors") for path in Path(directory).glob(kind))
    if not files:
        raise BadInput(f"teacher {LOCAL}{directory}: no weights there; name a directory of a Hugging Face model after {LOCAL!r}")
    return artifact.content_hash([[path.name, artifact.file_hash(path)] for path in files])
