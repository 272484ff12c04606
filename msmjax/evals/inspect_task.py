"""Any task of Inspect AI on an arm, in the run that trained it: samples and scores are answers, logs are kept for `inspect view`.

In: a task's name and the arguments of each of its cells. Out: an answer a sample and epoch. The arm answers through the provider
(inspect_provider.py), requests that wait together, or exported through vLLM; a grader is a teacher of the config, with its journal
and budget.
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
from msmjax.evals.eval import EXPORT, Eval
from msmjax.evals.results import VERDICT_TOKENS, Cost, Measure
from msmjax.generation.answering import Answering
from msmjax.generation.generate import Made, Settings
from msmjax.ranges import Count, Natural, NotNegative, Range

ROOMS = ("inspect_provider.py", "corpus/answer.py")  # that decide about prompts, answers and verdicts
KNOWN = ("c", "i", "p", "n", "yes", "no", "true", "false")  # values of scores that Inspect has numbers for
ENGINES = ("msmjax", "vllm")  # who answers: this process, or vLLM, which Inspect starts on the exported arm
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
    engine: str  # one of ENGINES

    def __post_init__(self):
        if self.engine not in ENGINES:
            raise BadInput(f"engine={self.engine!r}: unknown; one of {', '.join(ENGINES)}")
        if not self.cells or not self.scores:
            raise BadInput("cells, scores: name at least one of each; a task without arguments has the cell ()")
        if len({_key(dict(cell)) for cell in self.cells}) < len(self.cells):
            raise BadInput("cells: two are the same; name each once, and ask more of it by epochs")
        for cell in self.cells:
            if self.by and self.by not in dict(cell):
                raise BadInput(f"by={self.by!r}: cell {cell} has no such argument")

    def judges(self) -> tuple[str, ...]:
        return (self.judge,) if self.judge else ()

    def exports(self) -> bool:
        return self.engine == "vllm"

    def needs(self, name: str) -> None:
        if jax.process_count() > 1:
            raise BadInput(
                f"evals.{name}: Inspect asks one process; leave it out of the config here, and put it back to ask it on one: what "
                "is trained is found again"
            )
        if importlib.util.find_spec("inspect_ai") is None:
            raise BadInput(f"evals.{name}: needs Inspect AI: pip install 'msmjax[inspect]'")
        if self.exports() and importlib.util.find_spec("vllm") is None:
            raise BadInput(f"evals.{name}.engine='vllm': vLLM is not installed; pip install vllm, or set it to 'msmjax'")
        if self.exports() and "VLLM_BASE_URL" in os.environ:
            raise BadInput(f"evals.{name}: VLLM_BASE_URL names a server whose chat template may be another; unset it to start one")
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
        versions = {
            one: _version(one) for one in (*PACKAGES, *_distributions().get(package, ()), *(["vllm"] if self.exports() else []))
        }
        judge = makers.teachers[self.judge].identity if self.judge else None
        asked = ("task", "judge_argument", "epochs", "limit", "max_tokens", "temperature", "top_p", "seed", "engine")
        code = {"file": artifact.file_hash(file)} if file.is_file() else {}
        return {**{name: getattr(self, name) for name in asked}, "judge": judge, **versions, **code}

    def answer(self, name: str, items: None, arm: Arm) -> list[dict]:
        return asyncio.run(self._answer(name, arm))

    async def _answer(self, name: str, arm: Arm) -> list[dict]:
        os.environ.setdefault("INSPECT_DISPLAY", "none")  # the bar is ours
        out = []
        bar = tqdm(self.cells, desc=arm.label, unit="cell", leave=False, disable=None)
        async with self._model(arm) as model:  # vLLM ends with it
            for cell in bar:
                log = _kept(_logs(arm), cell)
                if log is None or log.status != "success":
                    log = await self._run(dict(cell), arm, model, log)
                answers = self._answers(cell, log)
                label = {"cell": self._label(cell)} if len(self.cells) > 1 else {}
                out += [{**one, "eval": name, **label} for one in answers]
                out += [{**one, "eval": f"{name}_{dict(cell)[self.by]}"} for one in answers] if self.by else []
        return out

    def _label(self, cell: tuple) -> str:
        """A cell's name in the report: the values of those arguments that not all cells have alike."""
        shared = set.intersection(*(set(map(json.dumps, other)) for other in self.cells))
        return "/".join(str(value) for name, value in cell if json.dumps((name, value)) not in shared) or "no arguments"

    def _model(self, arm: Arm):
        """The arm as a model of Inspect's."""
        from inspect_ai._util.error import PrerequisiteError
        from inspect_ai.model import GenerateConfig, Model, get_model

        from msmjax.inspect_provider import MsmjaxAPI

        if not self.exports():
            return Model(MsmjaxAPI(arm.label.replace(":", ","), answering=_Seeded(arm.answering(), self.seed)), GenerateConfig())
        name, config, arguments = served(arm)
        try:
            # At once: one that does not start would be an error of each sample.
            return get_model(name, config=GenerateConfig(**config), memoize=False, lazy_init=False, **arguments)
        except (PrerequisiteError, RuntimeError) as error:
            raise BadInput(f"{arm.label}: {name}: {_first_line(error)}") from error

    async def _run(self, cell: dict, arm: Arm, model, begun):
        """The log of one cell, asked now, but for the samples that a log has which was `begun`."""
        from inspect_ai import eval_async
        from inspect_ai._eval.task import PreviousTask  # what is between it and these two has no public name
        from inspect_ai._util.error import PrerequisiteError
        from inspect_ai.log import write_eval_log_async
        from inspect_ai.model import GenerateConfig, Model

        from msmjax.inspect_provider import JudgeAPI

        if not self.exports():
            model.api.answering.cell = _key(cell)

        async def ask(arguments: dict, roles: dict):
            task = self.task
            if begun is not None:
                task = PreviousTask(
                    id=begun.eval.task_id, task=task, task_args={**cell, **arguments}, model=None, model_roles=None,
                    sandbox=begun.eval.sandbox, log=begun, log_info=None,
                )  # fmt: skip
            try:
                (log,) = await eval_async(
                    task, model=model, task_args={**cell, **arguments}, model_roles=roles, log_dir=str(_logs(arm)),
                    log_format="json", metadata={"cell": _key(cell)}, epochs=self.epochs, limit=self.limit or None,
                    fail_on_error=False, max_tokens=self.max_tokens, temperature=self.temperature, top_p=self.top_p,
                    log_level="error", score_display=False,
                )  # fmt: skip
            except (PrerequisiteError, ImportError, SyntaxError) as error:
                raise BadInput(f"{arm.label}: {self.task} with {cell}: {_first_line(error)}") from error
            if log.status != "success":
                said = log.error.message.splitlines()[0] if log.error else log.status
                raise BadInput(f"{arm.label}: {self.task} with {cell}: {said}; its log is in {_logs(arm)}")
            if unread := [key for key in cell if key not in log.eval.task_args]:
                _remove(log)  # the next run would take it for this cell's
                raise BadInput(f"{arm.label}: {self.task} takes no argument {unread[0]!r}; it has {', '.join(log.eval.task_args)}")
            return log

        failed = None
        if not self.judge:
            log = await ask({}, {})
        else:
            async with arm.judge(self.judge) as teacher:
                judge = JudgeAPI(teacher)
                grader = Model(judge, GenerateConfig())
                log = await ask({self.judge_argument: grader} if self.judge_argument else {}, {"grader": grader})
            failed = judge.failed
        if self.exports() and not model.api.server_is_running:
            failed = BadInput(f"{arm.label}: vLLM ended by itself; what was answered is kept: run the same command")
        if failed:  # what has its scores is kept, and paid for; the rest is asked again
            log.samples = [one for one in log.samples or [] if not one.error and self.scores_of(one).keys() >= set(self.scores)]
            log.status = "cancelled"
            await write_eval_log_async(log, log.location)
        if begun is not None and begun.location != log.location:
            _remove(begun)
        if failed:
            raise failed
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
            numbers = self.scores_of(sample)
            lost = {} if len(numbers) == len(self.scores) else {"lost": sample.error.message if sample.error else "no score"}
            out.append({**answer, **numbers, **lost})
        return out

    def scores_of(self, sample) -> dict[str, float]:
        """Those of its scores that are read and that it has."""
        scores = _scores(sample)
        return {score: scores[score] for score in self.scores if scores.get(score) is not None}

    def cost(self, corpora: dict[str, Source]) -> Cost:
        count = len(self.cells) * self.epochs * (self.limit or 1)
        judged = ((self.judge, count * self.max_tokens, count * VERDICT_TOKENS),) if self.judge else ()
        lacks = () if self.limit else (f"the samples of {self.task} after the first of a cell",)
        return Cost(generated=count * self.max_tokens, judged=judged, lacks=lacks)


class _Seeded:
    """An Answering in which each request has a seed of its own: of `seed`, the cell, the sample and its epoch, its prompt, and how
    often that came before. Those that ask the same may change places; what is drawn for all of them stays."""

    def __init__(self, answering: Answering, seed: int):
        self.tokenizer, self._answering, self._seed = answering.tokenizer, answering, seed
        self.cell = ""
        self._came: collections.Counter[str] = collections.Counter()

    async def proceed(self, ids: list[int], settings: Settings) -> Made:
        from inspect_ai.solver._task_state import sample_state  # who asks has no public name

        if settings.seed is None:
            state = sample_state()
            prompt = artifact.content_hash([self._seed, self.cell, *([state.sample_id, state.epoch] if state else []), ids])
            seed = int(artifact.content_hash([prompt, self._came[prompt]]), 16) % 2**32
            self._came[prompt] += 1
            settings = dataclasses.replace(settings, seed=seed)
        return await self._answering.proceed(ids, settings)


def served(arm: Arm) -> tuple[str, dict, dict]:
    """An arm that was exported, as Inspect calls it (vllm/BASE:ADAPTER, or vllm/DIRECTORY), the settings of its requests, and the
    arguments of `vllm serve`. Chats are written by the template of training, which neither an adapter nor a link brings along."""
    weights, template = (arm.folder / EXPORT).absolute(), (arm.folder / "chat_template.jinja").absolute()
    artifact.write_text(template, arm.tokenizer.templates["default"])
    paths, adapter = [weights], weights / "adapter_config.json"
    if adapter.is_file():
        paths = [Path(json.loads(adapter.read_text(encoding="utf-8"))["base_model_name_or_path"]).absolute(), weights]
    if wrong := next((path for path in paths if ":" in str(path)), None):
        raise BadInput(f"{wrong}: has a colon, behind which Inspect takes the rest for an adapter; rename the directory")
    name = f"vllm/{':'.join(map(str, paths))}"
    given = dict(arm.tokenizer.arguments)
    return name, {"extra_body": {"chat_template_kwargs": given}} if given else {}, {"chat_template": str(template)}


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


def _kept(logs: Path, cell: tuple):
    """The log of a cell that was asked before, or else of one that was begun and not ended, or None."""
    from inspect_ai.log import read_eval_log

    begun = None
    for path in sorted(logs.glob("*.json")):
        header = read_eval_log(str(path), header_only=True)
        if (header.eval.metadata or {}).get("cell") == _key(dict(cell)):
            if header.status == "success":
                return read_eval_log(str(path))
            begun = path
    return begun and read_eval_log(str(begun))


def _remove(log) -> None:
    Path(log.location.removeprefix("file://")).unlink(missing_ok=True)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


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
