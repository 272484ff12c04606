"""Any task of Inspect AI on an arm, in the run that trained it: samples and scores are answers, logs are kept for `inspect view`.

In: a task's name and the arguments of each of its cells. Out: an answer a sample and epoch. The arm answers through the provider
(inspect_provider.py), requests that wait together; a grader is a teacher of the config, with its journal and budget.
"""

import asyncio
import collections
import dataclasses
import functools
import importlib.metadata
import importlib.util
import json
import os
from pathlib import Path
from typing import Annotated

import jax
from tqdm import tqdm

from msmjax import artifact
from msmjax.artifact import BadInput
from msmjax.corpus.sources import Makers, Source
from msmjax.evals.arm import Arm
from msmjax.evals.eval import Eval
from msmjax.evals.results import VERDICT_TOKENS, Cost, Measure
from msmjax.generation.answering import Answering
from msmjax.generation.generate import Made, Settings
from msmjax.ranges import Count, Natural, NotNegative, Range

ROOMS = ("inspect_provider.py", "corpus/answer.py")  # that decide about prompts, answers and verdicts
KNOWN = ("c", "i", "p", "n", "yes", "no", "true", "false")  # values of scores that Inspect has numbers for
PACKAGES = ("inspect-ai", "inspect-evals")  # whose versions decide about prompts and scores


@dataclasses.dataclass(frozen=True)
class InspectEval(Eval):
    """`task` is a name as after `inspect eval`: PACKAGE/TASK or FILE.py@TASK. It is run once for each of `cells`, the arguments
    that it is given: ((name, value), ...).

    `judge`, a teacher of the config or "" for none, is what it grades with: the role `grader` and, where it has a name, the
    argument `judge_argument`. `scores` names those that are read, the first of which the arms are compared by; each value of the
    argument `by`, where it is not "", has an eval of its own. A sample without a score is counted, and is in no mean.

    Each request has a seed of its own, made of `seed`: epochs differ, and another run draws the same.
    """

    task: str
    cells: tuple[tuple[tuple[str, object], ...], ...]
    judge: str
    judge_argument: str
    scores: tuple[str, ...]
    by: str
    epochs: Count
    limit: Natural  # samples of each cell; 0 is all
    max_tokens: Count
    temperature: NotNegative
    top_p: Annotated[float, Range("(0, 1]")]
    seed: Natural

    def __post_init__(self):
        if not self.cells or not self.scores:
            raise BadInput("cells, scores: name at least one of each; a task without arguments has the cell ()")
        if len({_key(dict(cell)) for cell in self.cells}) < len(self.cells):
            raise BadInput("cells: two are the same; name each once, and ask more of it by epochs")
        for cell in self.cells:
            if self.by and self.by not in dict(cell):
                raise BadInput(f"by={self.by!r}: cell {cell} has no such argument")

    def judges(self) -> tuple[str, ...]:
        return (self.judge,) if self.judge else ()

    def needs(self, name: str) -> None:
        if jax.process_count() > 1:
            raise BadInput(
                f"evals.{name}: Inspect asks one process; leave it out of the config here, and put it back to ask it on one: what "
                "is trained is found again"
            )
        if importlib.util.find_spec("inspect_ai") is None:
            raise BadInput(f"evals.{name}: needs Inspect AI: pip install 'msmjax[inspect]'")
        package = self.task.partition("/")[0]
        if ".py" not in self.task and importlib.util.find_spec(package) is None:
            raise BadInput(
                f"evals.{name}.task={self.task!r}: {package} is not installed; pip install 'msmjax[inspect]', or its own"
            )
        if ".py" in self.task and not Path(self.task.partition("@")[0]).is_file():
            raise BadInput(f"evals.{name}.task={self.task!r}: no such file; as in FILE.py@TASK")

    def measures(self, name: str, items: None) -> dict[str, Measure]:
        values = dict.fromkeys(str(dict(cell)[self.by]) for cell in self.cells) if self.by else ()
        meaning = f"{self.scores[0]} of {self.task}, {len(self.cells)} x {self.epochs}"
        parts = {f"{name}_{value}": Measure(f"{meaning}, where {self.by} is {value}", self.scores) for value in values}
        return {name: Measure(meaning, self.scores), **parts}

    def counts(self, name: str, items: None) -> dict[str, tuple[int, int]]:
        if not self.limit:
            return {}
        out = {name: self.cells}
        for cell in self.cells if self.by else ():
            out[f"{name}_{dict(cell)[self.by]}"] = (*out.get(f"{name}_{dict(cell)[self.by]}", ()), cell)
        return {one: (len(cells) * self.limit * self.epochs, len(cells) * self.limit) for one, cells in out.items()}

    def depends(self, makers: Makers) -> dict:
        return {**self.asks(makers), "cells": self.cells, "scores": self.scores, "by": self.by}

    def asks(self, makers: Makers) -> dict:
        """Of one cell; its log says which."""
        file, package = Path(self.task.partition("@")[0]), self.task.partition("/")[0]
        versions = {one: _version(one) for one in (*PACKAGES, *_distributions().get(package, ()))}
        judge = makers.teachers[self.judge].identity if self.judge else None
        asked = ("task", "judge_argument", "epochs", "limit", "max_tokens", "temperature", "top_p", "seed")
        code = {"file": artifact.file_hash(file)} if file.is_file() else {}
        return {**{name: getattr(self, name) for name in asked}, "judge": judge, **versions, **code}

    def answer(self, name: str, items: None, arm: Arm) -> list[dict]:
        return asyncio.run(self._answer(name, arm))

    async def _answer(self, name: str, arm: Arm) -> list[dict]:
        os.environ.setdefault("INSPECT_DISPLAY", "none")  # the bar is ours
        answering, out = arm.answering(), []
        bar = tqdm(self.cells, desc=arm.label, unit="cell", leave=False, disable=None)
        for cell in bar:
            log = _finished(_logs(arm), cell)
            if log is None:
                log = await self._run(dict(cell), arm, answering)
            answers = self._answers(cell, log)
            label = {"cell": self._label(cell)} if len(self.cells) > 1 else {}
            out += [{**one, "eval": name, **label} for one in answers]
            out += [{**one, "eval": f"{name}_{dict(cell)[self.by]}"} for one in answers] if self.by else []
        return out

    def _label(self, cell: tuple) -> str:
        """A cell's name in the report: the values of those arguments that not all cells have alike."""
        shared = set.intersection(*(set(map(json.dumps, other)) for other in self.cells))
        return "/".join(str(value) for name, value in cell if json.dumps((name, value)) not in shared) or "no arguments"

    async def _run(self, cell: dict, arm: Arm, answering):
        """The log of one cell, asked now."""
        from inspect_ai import eval_async
        from inspect_ai._util.error import PrerequisiteError  # it has no public name
        from inspect_ai.model import GenerateConfig, Model

        from msmjax.inspect_provider import JudgeAPI, MsmjaxAPI

        seeded = _Seeded(answering, [self.seed, _key(cell)])
        model = Model(MsmjaxAPI(arm.label.replace(":", ","), answering=seeded), GenerateConfig())

        async def ask(arguments: dict, roles: dict):
            try:
                (log,) = await eval_async(
                    self.task, model=model, task_args={**cell, **arguments}, model_roles=roles, log_dir=str(_logs(arm)),
                    log_format="json", metadata={"cell": _key(cell)}, epochs=self.epochs, limit=self.limit or None,
                    fail_on_error=False, max_tokens=self.max_tokens, temperature=self.temperature, top_p=self.top_p,
                    log_level="error", score_display=False,
                )  # fmt: skip
            except (PrerequisiteError, ImportError, SyntaxError) as error:
                said = (str(error).strip().splitlines() or [type(error).__name__])[0]
                raise BadInput(f"{arm.label}: {self.task} with {cell}: {said}") from error
            if log.status != "success":
                said = log.error.message.splitlines()[0] if log.error else log.status
                raise BadInput(f"{arm.label}: {self.task} with {cell}: {said}; its log is in {_logs(arm)}")
            if unread := [key for key in cell if key not in log.eval.task_args]:
                raise BadInput(f"{arm.label}: {self.task} takes no argument {unread[0]!r}; it has {', '.join(log.eval.task_args)}")
            return log

        if not self.judge:
            return await ask({}, {})
        async with arm.judge(self.judge) as teacher:
            judge = JudgeAPI(teacher)
            grader = Model(judge, GenerateConfig())
            log = await ask({self.judge_argument: grader} if self.judge_argument else {}, {"grader": grader})
        if judge.failed:
            Path(log.location.removeprefix("file://")).unlink(missing_ok=True)  # what it lacks is asked again
            raise judge.failed
        return log

    def _answers(self, cell: tuple, log) -> list[dict]:
        """An answer for each sample and epoch. Raises BadInput where a task has no score of a name that is read."""
        out = []
        for sample in log.samples or []:
            scores = _scores(sample)
            if scores and not set(self.scores) <= scores.keys():
                lacking = next(score for score in self.scores if score not in scores)
                raise BadInput(f"{self.task}: no score {lacking!r}; it has {', '.join(scores)}")
            where = "/".join(str(value) for _, value in cell)
            answer = {"item": f"{where}/{sample.id}/{sample.epoch}", "cluster": f"{where}/{sample.id}"}
            answer |= {"asked": dict(cell), "said": sample.output.completion if sample.output else ""}
            numbers = {score: scores[score] for score in self.scores if scores.get(score) is not None}
            lost = {} if len(numbers) == len(self.scores) else {"lost": sample.error.message if sample.error else "no score"}
            out.append({**answer, **numbers, **lost})
        return out

    def cost(self, corpora: dict[str, Source]) -> Cost:
        count = len(self.cells) * self.epochs * (self.limit or 1)
        judged = ((self.judge, count * self.max_tokens, count * VERDICT_TOKENS),) if self.judge else ()
        lacks = () if self.limit else (f"the samples of {self.task} after the first of a cell",)
        return Cost(generated=count * self.max_tokens, judged=judged, lacks=lacks)


class _Seeded:
    """An Answering in which each request has a seed of its own: of `what`, its prompt, and how often that came before. Those that
    ask the same may change places; what is drawn for all of them stays."""

    def __init__(self, answering: Answering, what: list):
        self.tokenizer, self._answering, self._what = answering.tokenizer, answering, what
        self._came: collections.Counter[str] = collections.Counter()

    async def proceed(self, ids: list[int], settings: Settings) -> Made:
        if settings.seed is None:
            prompt = artifact.content_hash([self._what, ids])
            seed = int(artifact.content_hash([prompt, self._came[prompt]]), 16) % 2**32
            self._came[prompt] += 1
            settings = dataclasses.replace(settings, seed=seed)
        return await self._answering.proceed(ids, settings)


def _scores(sample) -> dict[str, float | None]:
    """Score -> number, None where it is none that Inspect knows (it takes other words for 0); a scorer with several has a dict."""
    from inspect_ai.scorer import value_to_float

    def known_number(value) -> float | None:
        try:
            return float(value) if float(value) == float(value) else None  # Inspect's unscored is nan
        except (TypeError, ValueError):
            return float(value_to_float()(value)) if isinstance(value, str) and value.lower() in KNOWN else None

    values = {}
    for name, score in (sample.scores or {}).items():
        values |= score.value if isinstance(score.value, dict) else {name: score.value}
    return {name: known_number(value) for name, value in values.items()}


def _logs(arm: Arm) -> Path:
    """Where the logs of an arm's eval are, beside the evals of the working directory; they stay there."""
    return arm.folder.parents[1] / "inspect" / arm.folder.name.removeprefix("begun.")


def _finished(logs: Path, cell: tuple):
    """The log of a cell that was asked before, or None."""
    from inspect_ai.log import read_eval_log

    for path in sorted(logs.glob("*.json")):
        header = read_eval_log(str(path), header_only=True)
        if header.status == "success" and (header.eval.metadata or {}).get("cell") == _key(dict(cell)):
            return read_eval_log(str(path))
    return None


def _key(cell: dict) -> str:
    return json.dumps(cell, sort_keys=True)


@functools.cache
def _distributions() -> dict[str, list[str]]:
    """Package -> the distributions that have it."""
    return dict(importlib.metadata.packages_distributions())


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
