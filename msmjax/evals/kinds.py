"""The kinds of eval that a config can name.

A new kind is a file beside these, with a frozen dataclass that is an `Eval`, and a line in KINDS. Where other rooms decide about
its answers, its file names them: ROOMS.
"""

from msmjax.evals.base_text import BaseTextEval
from msmjax.evals.choice import ChoiceEval, MicroworldEval
from msmjax.evals.faking import FakingEval
from msmjax.evals.function import FunctionEval
from msmjax.evals.harness import HarnessEval
from msmjax.evals.inspect_task import InspectEval
from msmjax.evals.judged import JudgedEval

KINDS = {
    "microworld": MicroworldEval, "choice": ChoiceEval, "base_text": BaseTextEval, "judged": JudgedEval, "faking": FakingEval,
    "inspect": InspectEval, "lm_eval": HarnessEval, "function": FunctionEval,
}  # fmt: skip
