"""Any task of lm-evaluation-harness on an arm: capabilities, before and after.

In: names of tasks, or a folder of YAML files, each with the metric that is read. Out: an answer a document. Log-probabilities are
those of lm-eval's own `hf` model on the same weights (tests/evals/test_tasks.py).
"""

import dataclasses
import functools
import importlib.metadata
import importlib.util
from collections.abc import Collection
from pathlib import Path

import numpy as np

from msmjax import artifact
from msmjax.artifact import BadInput
from msmjax.corpus.sources import Makers, Source
from msmjax.data.tokenizer import BOS
from msmjax.evals.arm import Arm
from msmjax.evals.eval import Eval
from msmjax.evals.results import Cost, Measure
from msmjax.generation.generate import Settings
from msmjax.ranges import Count, Natural

MAX_TOKENS = 256  # of an answer, where a task does not say
PACKAGE = "lm_eval"


@dataclasses.dataclass(frozen=True)
class HarnessEval(Eval):
    """`tasks` are ((task, metric), ...), a metric as lm-eval's results name it, with its filter: "acc,none".

    `folder` has YAML files of tasks of one's own, or is "". `fewshot` examples stand before each document, of which there are up to
    `limit` (0: all). `chat` puts it to the model through its template. A text is read in windows of `max_length` tokens.
    """

    tasks: tuple[tuple[str, str], ...]
    folder: str
    fewshot: Natural
    chat: bool
    limit: Natural
    max_length: Count

    def __post_init__(self):
        if not self.tasks or any("," not in metric for _, metric in self.tasks):
            raise BadInput(f'tasks={self.tasks}: must be ((task, "metric,filter"), ...), as in (("arc_easy", "acc_norm,none"),)')
        if len({task for task, _ in self.tasks}) < len(self.tasks):
            raise BadInput(f"tasks={self.tasks}: a task is named twice; give each metric an eval of its own")

    def needs(self, name: str) -> None:
        if importlib.util.find_spec(PACKAGE) is None:
            raise BadInput(f"evals.{name}: needs lm-evaluation-harness: pip install 'msmjax[lm-eval]'")
        if self.folder and not Path(self.folder).is_dir():
            raise BadInput(f"evals.{name}.folder={self.folder!r}: no such folder; it has the YAML files of tasks")

    def measures(self, name: str, items: None) -> dict[str, Measure]:
        return {task: Measure(f"{metric} of lm-eval's {task}", (metric.partition(",")[0],)) for task, metric in self.tasks}

    def depends(self, makers: Makers) -> dict:
        folder = Path(self.folder)
        paths = sorted(path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
        files = [[path.relative_to(folder).as_posix(), artifact.file_hash(path)] for path in paths] if self.folder else None
        return {**dataclasses.asdict(self), "files": files, PACKAGE: importlib.metadata.version(PACKAGE)}

    def answer(self, name: str, items: None, arm: Arm) -> list[dict]:
        import lm_eval

        if self.chat and not hasattr(arm.tokenizer, "encode_marked"):
            raise BadInput(f"evals.{name}.chat=True: only the chat template of weights can be asked so; set it to False")
        try:
            found = lm_eval.simple_evaluate(
                model=_model(arm, self.max_length), tasks=[task for task, _ in self.tasks], num_fewshot=self.fewshot,
                limit=self.limit or None, task_manager=_known(self.folder, dict(self.tasks)), log_samples=True,
                apply_chat_template=self.chat, fewshot_as_multiturn=self.chat and self.fewshot > 0, bootstrap_iters=0,
            )  # fmt: skip
        except (KeyError, OSError, ConnectionError) as error:
            said = " ".join(str(error).split())[:300]
            raise BadInput(f"evals.{name}: {said}; tasks and their data must be where lm-eval looks for them") from error
        out = []
        for task, metric in self.tasks:
            metric, _, chosen = metric.partition(",")
            samples = found["samples"].get(task)
            if samples is None:
                raise BadInput(f"evals.{name}: {task} is a group; name its tasks, of which each has documents of its own")
            mine = [sample for sample in samples if sample.get("filter", "none") == chosen]
            if not mine or not all(isinstance(sample.get(metric), int | float) for sample in mine):
                has = sorted(
                    f"{key},{sample.get('filter', 'none')}"
                    for sample in samples[:8] for key in sample["metrics"] if isinstance(sample.get(key), int | float)
                )  # fmt: skip
                asked = f"{metric},{chosen}"
                raise BadInput(
                    f"evals.{name}: {task} has no {asked} of each document; it has {', '.join(dict.fromkeys(has)) or 'none'}"
                )
            for sample in mine:
                said = sample["filtered_resps"]
                answer = {"eval": task, "item": sample["doc_id"], "said": said if isinstance(said, str) else repr(said)}
                out.append({**answer, metric: float(sample[metric])})
        return out

    def cost(self, corpora: dict[str, Source]) -> Cost:
        return Cost(lacks=tuple(f"lm-eval's {task}" for task, _ in self.tasks))


def _known(folder: str, names: Collection[str]):
    """The harness's tasks: its own, which are 13,000 files, only where the folder has not all that are named."""
    if folder and set(names) <= set(_tasks(folder, False).all_tasks):
        return _tasks(folder, False)
    return _tasks(folder, True)


@functools.lru_cache(maxsize=8)
def _tasks(folder: str, its_own: bool):
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=folder or None, include_defaults=its_own)


def _model(arm: Arm, length: int):
    """What the harness asks."""
    from lm_eval.api.model import TemplateLM
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

    tokenizer = arm.tokenizer
    first, last = getattr(tokenizer, "prefix", BOS), tokenizer.document([])[-1]

    class ArmLM(TemplateLM):
        """An arm."""

        eot_token_id = last
        prefix_token_id = first
        max_length = length
        tokenizer_name = "" if not hasattr(tokenizer, "templates") else tokenizer.name

        def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_) -> list[int]:
            if string.startswith(CHAT):
                return tokenizer.encode_marked(string.removeprefix(CHAT))
            ids = tokenizer.encode(string)
            return ids if add_special_tokens is False else tokenizer.document(ids)[:-1]

        def apply_chat_template(self, chat_history: list[dict], add_generation_prompt: bool = True) -> str:
            if not add_generation_prompt:
                raise BadInput("lm-eval asks to continue a turn that is begun, which no chat template here can do")
            return CHAT + tokenizer.readable(tokenizer.render_prompt(chat_history, "a document of lm-eval"))

        def chat_template(self, chat_template: bool | str = False) -> str:
            return tokenizer.name

        def _loglikelihood_tokens(self, requests, **_) -> list[tuple[float, bool]]:
            examples = []
            for _, context, continuation in requests:
                ids = [*context, *continuation][-(length + 1) :]
                examples.append((ids, max(len(ids) - len(continuation), 1)))
            nats, greedy = arm.score_greedily(examples)
            return list(zip((-nats).tolist(), greedy.tolist(), strict=True))

        def loglikelihood_rolling(self, requests, disable_tqdm: bool = False) -> list[float]:
            examples, owners = [], []
            for owner, request in enumerate(requests):
                ids = tokenizer.encode(request.args[0])
                windows = get_rolling_token_windows(ids, prefix_token=first, max_seq_len=length, context_len=1)
                for context, continuation in map(make_disjoint_window, windows):
                    examples.append(([*context, *continuation], len(context)))
                    owners.append(owner)
            return (-np.bincount(owners, arm.score(examples), len(requests))).tolist()

        def generate_until(self, requests, disable_tqdm: bool = False) -> list[str]:
            out: list[str] = [""] * len(requests)
            of_settings: dict[Settings, list[int]] = {}
            for index, request in enumerate(requests):
                wanted = request.args[1]
                temperature = float(wanted.get("temperature", 0.0)) if wanted.get("do_sample") else 0.0
                tokens = int(wanted.get("max_gen_toks", MAX_TOKENS))
                of_settings.setdefault(Settings(tokens, temperature, float(wanted.get("top_p", 1.0)), 0), []).append(index)
            for settings, indices in of_settings.items():
                if settings.max_tokens >= length:
                    raise BadInput(f"max_length={length}: a task generates {settings.max_tokens} tokens; give it more than that")
                prompts = [self.tok_encode(requests[index].args[0])[-(length - settings.max_tokens) :] for index in indices]
                for index, text in zip(indices, arm.say(prompts, settings), strict=True):
                    until = requests[index].args[1].get("until", [])
                    ends = [text.index(end) for end in ([until] if isinstance(until, str) else until) if end and end in text]
                    out[index] = text[: min(ends)] if ends else text
            return out

    return ArmLM()


CHAT = "\x00chat\x00"  # before what a chat template wrote, whose control tokens are read as such
