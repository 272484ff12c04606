"""An eval of one's own, in Python: a function that is given an arm and returns answers.

In: FILE.py:FUNCTION. Out: what it returns, each answer with `item` and `score`, and `cluster` where items share something.
"""

import dataclasses
import numbers
import runpy
from pathlib import Path

from msmjax import artifact
from msmjax.artifact import BadInput
from msmjax.corpus.sources import Makers, Source
from msmjax.evals.arm import Arm
from msmjax.evals.eval import Eval
from msmjax.evals.results import Cost, Measure


@dataclasses.dataclass(frozen=True)
class FunctionEval(Eval):
    """`function` is FILE.py:NAME; it takes an `Arm` (evals/arm.py) and returns answers as dicts of JSON. In a run of several
    processes each calls it, and each must ask the arm the same."""

    function: str

    def __post_init__(self):
        path, _, name = self.function.rpartition(":")
        if not path.endswith(".py") or not name.isidentifier():
            raise BadInput(f"function={self.function!r}: must be FILE.py:NAME")

    def needs(self, name: str) -> None:
        self._load()

    def measures(self, name: str, items: None) -> dict[str, Measure]:
        return {name: Measure(f"score by {self.function}", ("score",))}

    def depends(self, makers: Makers) -> dict:
        return {"function": self.function, "file": artifact.file_hash(Path(self.function.rpartition(":")[0]))}

    def answer(self, name: str, items: None, arm: Arm) -> list[dict]:
        out, answers = [], self._load()(arm)
        if not isinstance(answers, list) or len({str(one.get("item")) for one in answers if isinstance(one, dict)}) < len(answers):
            raise BadInput(f"{self.function}: must return a list of dicts, each with an 'item' of its own")
        for number, answer in enumerate(answers):
            score = answer.get("score", 0.0) if isinstance(answer, dict) and "item" in answer else None
            if not isinstance(score, numbers.Real) or score != score:
                raise BadInput(f"{self.function}: answer {number} is {answer!r}; must be a dict with 'item' and a number, 'score'")
            out.append({**answer, "eval": name, **({"score": float(score)} if "score" in answer else {})})
        return out

    def cost(self, corpora: dict[str, Source]) -> Cost:
        return Cost(lacks=(self.function,))

    def _load(self):
        path, _, name = self.function.rpartition(":")
        try:
            found = runpy.run_path(path).get(name)
        except (OSError, SyntaxError, ImportError) as error:
            raise BadInput(f"function={self.function!r}: {error}") from error
        if not callable(found):
            raise BadInput(f"function={self.function!r}: the file defines no function {name}")
        return found
