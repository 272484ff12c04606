"""The kinds of eval that a config can name, and what each of them is to the rest of the house.

A new kind is a file beside these, with a frozen dataclass that is an `Eval`, and a line in KINDS.
"""

from pathlib import Path
from typing import Protocol

from msmjax.corpus.sources import Makers, Source
from msmjax.corpus.teacher_config import TeacherConfig
from msmjax.evals.arm import Arm
from msmjax.evals.base_text import BaseTextEval
from msmjax.evals.choice import ChoiceEval, MicroworldEval
from msmjax.evals.faking import FakingEval
from msmjax.evals.function import FunctionEval
from msmjax.evals.harness import HarnessEval
from msmjax.evals.inspect_task import InspectEval
from msmjax.evals.judged import JudgedEval
from msmjax.evals.results import Cost, Measure


class Eval(Protocol):
    """The settings of an eval. It has items and asks an arm, which scores and speaks; answers come back.

    An answer says `eval`, `item` and its metrics by name; `cluster`, where items share something; and whatever a reader would want
    to see of it, the question and what was said first of all.
    """

    def check(self, corpora: dict[str, Source], teachers: dict[str, TeacherConfig], where: str) -> None:
        """Raises BadInput where a setting names what there is not."""

    def reads(self) -> tuple[str, ...]:
        """The corpora of whose rows it measures something."""

    def items(self, parent: Path, name: str, corpora: dict[str, Source], makers: Makers) -> Path | None:
        """The artifact of its items, `items.jsonl`; None where they are not ours to make. Raises BadInput for a file of none."""

    def measures(self, name: str, items: list[dict] | None) -> dict[str, Measure] | None:
        """What it measures, by the name under which the report shows it; None where that is not known without items."""

    def depends(self, makers: Makers) -> dict:
        """What answers depend on beside the model, the items, the prompt and the rows."""

    def answer(self, name: str, items: list[dict] | None, arm: Arm) -> list[dict]:
        """The answers of an arm. Every process calls it; those of the first count."""

    def cost(self, corpora: dict[str, Source]) -> Cost:
        """What it takes of one model, before there are tokens."""


KINDS = {
    "microworld": MicroworldEval, "choice": ChoiceEval, "base_text": BaseTextEval, "judged": JudgedEval, "faking": FakingEval,
    "inspect": InspectEval, "lm_eval": HarnessEval, "function": FunctionEval,
}  # fmt: skip
