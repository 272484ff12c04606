"""An experiment's settings: from the ConfigDict of a `configs/*.py` to frozen dataclasses, where every key is known and read.

In: a ConfigDict. Out: an `ExperimentConfig`. Raises BadInput for an unknown, missing or mistyped key, with a suggestion.
"""

import dataclasses
import itertools
import json
from collections.abc import Collection
from pathlib import Path
from typing import Annotated

from ml_collections import ConfigDict

from msmjax import ranges
from msmjax.artifact import BadInput
from msmjax.corpus import sources
from msmjax.corpus.gates import GateConfig
from msmjax.corpus.requests import RequestSource
from msmjax.corpus.sources import AssistantConfig, Source, WorldConfig, WrittenSource
from msmjax.corpus.teacher_config import TeacherConfig
from msmjax.data.examples import UNPROVEN
from msmjax.data.huggingface import CONTROL_IN_TEXT
from msmjax.data.rows import TOO_LONG
from msmjax.evals import kinds
from msmjax.evals.eval import Eval
from msmjax.evals.results import Measure
from msmjax.influence.gradients import InfluenceConfig
from msmjax.model import huggingface_config
from msmjax.model.transformer import ModelConfig
from msmjax.ranges import Count, Natural, NotNegative, Range, suggestion
from msmjax.training.loop import LogConfig, StageConfig
from msmjax.training.sharding import MeshConfig
from msmjax.training.step import StepConfig

IMPORT = "import"  # the first stage of every arm that starts from published weights


@dataclasses.dataclass(frozen=True)
class PromptConfig:
    """How evals put a chat to a model: as the fine-tuning chats of the corpus `like` are written."""

    like: str
    system: str  # before each question, {name} being who is asked; "" is none, "{chats}" the one that the chats have
    opening: str  # what every answer begins with, unscored; "{chats}" is a block of thinking as in the chats, but empty, or nothing


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A difference that the report shows, on one eval: the sum of `arms` minus the sum of `against`.

    Most often that is one arm minus another; two minus two is a difference of differences.
    """

    label: str
    eval: str
    arms: tuple[str, ...]
    against: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Ladder:
    """Curves that the report draws of one eval: for each line, what its arms score by the dose that each was given.

    Where `saves` names two lines, the report says how many times the dose of a rung of the first the second takes to come as far.
    """

    label: str
    eval: str
    dose: str  # what is counted, and its unit
    lines: tuple[tuple[str, tuple[tuple[NotNegative, str], ...]], ...]  # (line, ((dose, arm), ...)), ...
    saves: tuple[str, ...]

    def __post_init__(self):
        if self.saves and (len(self.saves) != 2 or not set(self.saves) <= {line for line, _ in self.lines}):
            raise BadInput(f"saves={self.saves}: must be two of the lines {', '.join(line for line, _ in self.lines)}, or ()")


@dataclasses.dataclass(frozen=True)
class Grid:
    """A table that the report shows of one eval: arms by two factors, such as what was read first and what was trained on then."""

    label: str
    eval: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    arms: tuple[tuple[str, ...], ...]  # of each row its arms by column, "" where there is none

    def __post_init__(self):
        if len(self.arms) != len(self.rows) or {len(row) for row in self.arms} != {len(self.columns)}:
            shape = f"{len(self.rows)} x {len(self.columns)}"
            raise BadInput(f"arms={self.arms}: must be {shape}, an arm or '' for each row and column")


@dataclasses.dataclass(frozen=True)
class ExperimentConfig:
    """Everything an experiment is: arms are named chains of stages, `run` names those that are run.

    `weights` is a local Hugging Face directory: its weights are the stage `import`, and its tokenizer and chat template are used.
    `adapter` is a PEFT directory whose adapter every arm continues, or "". Where `weights` is "", models start from their seeds,
    and the tokenizer is trained on `tokenizer_corpus`.
    """

    name: str
    question: str
    seeds: tuple[Natural, ...]
    run: tuple[str, ...]
    arms: dict[str, tuple[str, ...]]
    stages: dict[str, StageConfig]
    corpora: dict[str, Source]
    text_and_messages: str  # what a record of a file is that has both: one of corpus/sources.py's TEXT_AND_MESSAGES
    teachers: dict[str, TeacherConfig]  # who writes and who judges, by the names that corpora use
    gates: GateConfig | None  # what corpora by teachers must keep to be trained on; None where there are none
    comparisons: tuple[Comparison, ...]
    ladders: tuple[Ladder, ...]
    grids: tuple[Grid, ...]
    world: WorldConfig
    assistant: AssistantConfig
    weights: str
    adapter: str
    template: str  # the chat template: a file, or the name of a shipped one; "" is the adapter's, else the weights' own
    template_arguments: tuple[tuple[str, bool], ...]  # what the chat template is given, e.g. (("enable_thinking", False),)
    vocab_size: Count
    tokenizer_corpus: str
    row_length: Annotated[int, Range("[2, inf)")]
    too_long: str  # what becomes of conversations longer than a row: one of data/rows.py's TOO_LONG
    unproven: str  # and of those whose loss mask cannot be proven: one of data/examples.py's UNPROVEN
    control_in_text: str  # and of those in which a text spells a control token: one of data/huggingface.py's CONTROL_IN_TEXT
    model: ModelConfig
    optimizer: StepConfig
    mesh: MeshConfig
    log: LogConfig
    evals: dict[str, Eval]
    prompt: PromptConfig
    influence: InfluenceConfig
    headline: tuple[str, ...]  # evals of the headline figure, as the report names them; () is all but bits per byte
    source: str  # the ConfigDict as JSON, for the report and the run's name


@dataclasses.dataclass(frozen=True)
class Claim:
    """A claim, and the comparison that answers for it: positive where it holds."""

    claim: str
    paper: str  # where it is made, and what was found there
    config: str  # a file of configs/, as after --config
    comparison: str  # its label


@dataclasses.dataclass(frozen=True)
class ClaimsConfig:
    """Claims that are answered by several experiments, all with these seeds."""

    name: str
    question: str
    seeds: tuple[Natural, ...]
    claims: tuple[Claim, ...]
    source: str  # the ConfigDict as JSON


def claims_from_config_dict(config: ConfigDict) -> ClaimsConfig:
    """Checks and freezes a config that has `claims`."""
    top = _fields(config.copy_and_resolve_references(), ["name", "question", "seeds", "claims"], "config")
    for key in ("name", "question"):
        ranges.check(str, top[key], key)
    claims = tuple(_entry(Claim, value, f"claims[{index}]") for index, value in enumerate(top["claims"]))
    if not claims:
        raise BadInput("claims=(): name at least one, as configs/claims.py does")
    source = json.dumps(config.to_dict(), sort_keys=True, indent=1)
    return ClaimsConfig(top["name"], top["question"], _seeds(top["seeds"]), claims, source)


def from_config_dict(config: ConfigDict) -> ExperimentConfig:
    """Checks and freezes a config. Every name that points to a stage, corpus or arm must exist.

    With weights, what their config.json decides of the model may be left out.
    """
    config = _with_shape(config.copy_and_resolve_references())
    declared = {field.name: field.type for field in dataclasses.fields(ExperimentConfig) if field.name != "source"}
    top = _fields(config, list(declared), "config")
    for name, kind in declared.items():
        ranges.check(kind, top[name], name)
    stages = {name: _stage(value, top["row_length"], f"stages.{name}") for name, value in top["stages"].items()}
    if IMPORT in stages:
        raise BadInput(f"stages.{IMPORT}: has no settings of its own; name it in arms, and the directory in weights")
    corpora = {name: _source(value, f"corpora.{name}") for name, value in top["corpora"].items()}
    teachers = {name: _make(TeacherConfig, value, f"teachers.{name}") for name, value in top["teachers"].items()}
    for name, corpus in corpora.items():
        if isinstance(corpus, WrittenSource):
            _names((corpus.teacher, *([corpus.judge] if corpus.judge else [])), teachers, f"corpora.{name}", "teacher")
    gates = _make(GateConfig, top["gates"], "gates") if top["gates"] else None
    if gates is None and any(isinstance(corpus, WrittenSource) for corpus in corpora.values()):
        raise BadInput("gates={}: corpora by teachers are used only if they pass some; see configs/written.py")
    texts = {name: corpus for name, corpus in corpora.items() if not isinstance(corpus, RequestSource)}  # the others are asked
    if gates and gates.reference:
        _names((gates.reference,), texts, "gates.reference", "corpus of texts")
    known = [*([IMPORT] if top["weights"] else []), *stages]
    arms = {name: _names(tuple(chain), known, f"arms.{name}", "stage") for name, chain in top["arms"].items()}
    for name, chain in arms.items():
        if not chain:
            raise BadInput(f"arms.{name}=(): an arm is at least one stage of {', '.join(known)}")
        if top["weights"] and (chain[0] != IMPORT or IMPORT in chain[1:]):
            raise BadInput(f"arms.{name}={chain}: with weights, {IMPORT!r} is the first stage of every arm, and no other")
    run = _names(tuple(top["run"]), arms, "run", "arm")
    for name, stage in stages.items():
        _names(tuple(corpus for corpus, _ in stage.data), texts, f"stages.{name}.data", "corpus of texts")
    for name, chain in arms.items():
        _shuffles(f"arms.{name}", [(stage, stages[stage]) for stage in chain if stage != IMPORT])
    comparisons = tuple(_comparison(value, f"comparisons[{index}]") for index, value in enumerate(top["comparisons"]))
    for comparison in comparisons:
        _names((*comparison.arms, *comparison.against), arms, f"comparisons[{comparison.label}]", "arm")
    ladders = tuple(_entry(Ladder, value, f"ladders[{index}]") for index, value in enumerate(top["ladders"]))
    for ladder in ladders:
        _names(tuple(arm for _, rungs in ladder.lines for _, arm in rungs), arms, f"ladders[{ladder.label}]", "arm")
    grids = tuple(_entry(Grid, value, f"grids[{index}]") for index, value in enumerate(top["grids"]))
    for grid in grids:
        _names(tuple(arm for row in grid.arms for arm in row if arm), arms, f"grids[{grid.label}]", "arm")
    evals = {name: _kind(kinds.KINDS, value, f"evals.{name}") for name, value in top["evals"].items()}
    if not evals:
        raise BadInput(f"evals={{}}: name at least one, of kind {', '.join(kinds.KINDS)}")
    for name, one in evals.items():
        one.check(corpora, teachers, f"evals.{name}")
        _names(one.reads(), texts, f"evals.{name}", "corpus of texts")
        if one.exports() and not top["weights"]:
            raise BadInput(f"evals.{name}: asks arms in another program, which the microworld's tokenizer is not for; name weights")
    prompt = _make(PromptConfig, top["prompt"], "prompt")
    _names((prompt.like,), texts, "prompt", "corpus of texts")
    headline = tuple(top["headline"])
    if not top["weights"]:
        _names((top["tokenizer_corpus"],), texts, "tokenizer_corpus", "corpus of texts")
    elif top["tokenizer_corpus"]:
        raise BadInput(f"tokenizer_corpus={top['tokenizer_corpus']!r}: weights come with a tokenizer of their own; set it to ''")
    seeds = _seeds(top["seeds"])
    if not run:
        raise BadInput(f"run=(): name at least one arm of {', '.join(arms)}")
    choices = {
        "too_long": TOO_LONG, "unproven": UNPROVEN, "control_in_text": CONTROL_IN_TEXT,
        "text_and_messages": sources.TEXT_AND_MESSAGES,
    }  # fmt: skip
    for key, allowed in choices.items():
        if top[key] not in allowed:
            raise BadInput(f"{key}={top[key]!r}: unknown{suggestion(top[key], list(allowed))}")
    shape = _fields(top["model"], [field.name for field in dataclasses.fields(ModelConfig) if field.name != "vocab"], "model")
    model = _make(ModelConfig, {**shape, "vocab": top["vocab_size"]}, "model")
    if model.lora_rank and not top["weights"]:
        raise BadInput(f"model.lora_rank={model.lora_rank}: an adapter needs weights to adapt; name their directory in weights")
    if top["adapter"] and not model.lora_rank:
        raise BadInput(f"adapter={top['adapter']!r}: all parameters are trained (model.lora_rank=0), so there is none to continue")
    if top["template"] and not top["weights"]:
        raise BadInput(f"template={top['template']!r}: the microworld's chats have their own form; set it to ''")
    arguments = tuple(tuple(pair) for pair in top["template_arguments"])
    if any([type(part) for part in pair] != [str, bool] for pair in arguments):
        raise BadInput(f"template_arguments={arguments}: must be ((name, True or False), ...)")
    if arguments and not top["weights"]:
        raise BadInput(f"template_arguments={arguments}: only the chat template of weights takes any; set it to ()")
    frozen = ExperimentConfig(
        **{name: top[name] for name, kind in declared.items() if ranges.plain(kind) in (str, int)},
        seeds=seeds,
        run=run,
        arms=arms,
        stages=stages,
        corpora=corpora,
        teachers=teachers,
        gates=gates,
        comparisons=comparisons,
        ladders=ladders,
        grids=grids,
        world=_make(WorldConfig, top["world"], "world"),
        assistant=_make(AssistantConfig, top["assistant"], "assistant"),
        model=model,
        template_arguments=arguments,
        optimizer=_make(StepConfig, top["optimizer"], "optimizer"),
        mesh=_make(MeshConfig, top["mesh"], "mesh"),
        log=_make(LogConfig, top["log"], "log"),
        evals=evals,
        prompt=prompt,
        influence=_make(InfluenceConfig, top["influence"], "influence"),
        headline=headline,
        source=json.dumps(config.to_dict(), sort_keys=True, indent=1),
    )
    if (measured := measures(frozen)) is not None:  # experiment/data.py reads the files of others
        check_shown(frozen, measured)
    return frozen


def _with_shape(config: ConfigDict) -> ConfigDict:
    """The config, where it has weights, with what it lacks of their shape, so that it is the whole one that reports show."""
    if "weights" not in config or "model" not in config or not config.weights:
        return config
    ranges.check(str, config.weights, "weights")
    ranges.check(dict[str, object], config.model, "model")
    lacking = [name for name in huggingface_config.KEYS if name != "vocab" and name not in config.model]
    if lacking or "vocab_size" not in config:
        read = huggingface_config.read(Path(config.weights))
        with config.unlocked():
            config.model.update({name: read[name] for name in lacking})
            if "vocab_size" not in config:
                config.vocab_size = read["vocab"]
    return config


def _seeds(given) -> tuple[int, ...]:
    seeds = tuple(given)
    if not seeds or len(set(seeds)) < len(seeds) or any(type(seed) is not int or seed < 0 for seed in seeds):
        raise BadInput(f"seeds={seeds}: must be different whole numbers, at least one, e.g. (0, 1, 2)")
    return seeds


def _mapping(value, where: str) -> dict:
    ranges.check(dict[str, object], value, where)
    return dict(value.items())


def _fields(value, names: list[str], where: str) -> dict:
    """The entries of a mapping that must have exactly the keys `names`."""
    given = _mapping(value, where)
    for key in given:
        if key not in names:
            raise BadInput(f"{where}.{key}: unknown key{suggestion(key, names)}")
    for name in names:
        if name not in given:
            raise BadInput(f"{where}.{name}: missing")
    return given


def _make(cls, value, where: str):
    """An instance of a frozen dataclass from a mapping; its own checks get to know where they failed."""
    types = {field.name: field.type for field in dataclasses.fields(cls)}
    given = _fields(value, list(types), where)
    for name, entry in given.items():
        ranges.check(types[name], entry, f"{where}.{name}")
        if ranges.plain(types[name]) is float:
            given[name] = float(entry)
        elif isinstance(entry, list | tuple):
            given[name] = tuple(tuple(part) if isinstance(part, list | tuple) else part for part in entry)
    try:
        return cls(**given)
    except BadInput as error:
        raise BadInput(str(error) if str(error).startswith(f"{where}.") else f"{where}: {error}") from None


def check_shown(config: ExperimentConfig, known: Collection[str]) -> None:
    """Raises BadInput where the headline, a comparison, a ladder or a grid names an eval that there is none of."""
    _names(config.headline, known, "headline", "eval")
    for one in (*config.comparisons, *config.ladders, *config.grids):
        _names((one.eval,), known, f"{type(one).__name__.lower()}s[{one.label}]", "eval")


def measures(config: ExperimentConfig, items: dict[str, list[dict] | None] | None = None) -> dict[str, Measure] | None:
    """What the evals measure, by the names that the report shows; None where that is not known without their items. Raises BadInput
    where two of them have a name in common."""
    out: dict[str, Measure] = {}
    for name, one in config.evals.items():
        found = one.measures(name, items and items[name])
        if found is None:
            return None
        if both := found.keys() & out.keys():
            raise BadInput(f"evals.{name}: measures {min(both)!r}, and so does an eval before it; give them other names")
        out |= found
    return out


def _stage(value, row_length: int, where: str) -> StageConfig:
    """A stage, whose steps have so many tokens, padding included, in rows of this length."""
    names = ["tokens_per_step" if field.name == "batch_rows" else field.name for field in dataclasses.fields(StageConfig)]
    given = _fields(value, names, where)
    tokens = given.pop("tokens_per_step")
    ranges.check(Count, tokens, f"{where}.tokens_per_step")
    if tokens % row_length:
        raise BadInput(f"{where}.tokens_per_step={tokens!r}: must be a multiple of row_length={row_length}")
    return _make(StageConfig, {**given, "batch_rows": tokens // row_length}, where)


def _shuffles(where: str, chain: list[tuple[str, StageConfig]]) -> None:
    """Raises BadInput where two stages of an arm would read a corpus in the same order."""
    for (one, first), (other, second) in itertools.combinations(chain, 2):
        shared = {corpus for corpus, _ in first.data} & {corpus for corpus, _ in second.data}
        if shared and first.shuffle == second.shuffle:
            raise BadInput(
                f"{where}: {one} and {other} would read {', '.join(sorted(shared))} in the same order; give "
                f"stages.{other}.shuffle another number than {first.shuffle}"
            )


def _comparison(value, where: str) -> Comparison:
    """(label, eval, arm, against), where either side is the name of an arm or a tuple of as many names as the other."""
    names = [field.name for field in dataclasses.fields(Comparison)]
    if not isinstance(value, tuple | list) or len(value) != len(names):
        raise BadInput(f"{where}={value!r}: must be (label, eval, arm, against)")
    sides = {name: (part,) if isinstance(part, str) else part for name, part in zip(names[2:], value[2:], strict=True)}
    comparison = _make(Comparison, {**dict(zip(names, value, strict=True)), **sides}, where)
    if not comparison.arms or len(comparison.arms) != len(comparison.against):
        raise BadInput(f"{where}={value!r}: must be (label, eval, arm, against), with as many arms on either side")
    return comparison


def _entry(cls: type[Ladder] | type[Grid] | type[Claim], value, where: str):
    """A ladder, a grid or a claim from a tuple of its fields in order."""
    form = {
        Ladder: "(label, eval, dose, ((line, ((dose, arm), ...)), ...), saves)",
        Grid: "(label, eval, (row, ...), (column, ...), ((arm, ...), ...))",
        Claim: "(claim, paper, config, comparison)",
    }
    names = [field.name for field in dataclasses.fields(cls)]
    if not isinstance(value, tuple | list) or len(value) != len(names):
        raise BadInput(f"{where}={value!r}: must be {form[cls]}")
    return _make(cls, dict(zip(names, value, strict=True)), where)


def _source(value, where: str) -> Source:
    given = _mapping(value, where)
    if given.get("kind") in ("file", "selection") and isinstance(given.get("path"), str):
        given["path"] = (given["path"],)
    return _kind(sources.KINDS, given, where)


def _kind(known: dict[str, type], value, where: str):
    """An instance of the class that `kind` names."""
    given = _mapping(value, where)
    kind = given.pop("kind", "")
    ranges.check(str, kind, f"{where}.kind")
    if kind not in known:
        raise BadInput(f"{where}.kind={kind!r}: unknown{suggestion(kind, list(known))}")
    return _make(known[kind], given, where)


def _names(names: tuple[str, ...], known: Collection[str], where: str, what: str) -> tuple[str, ...]:
    for name in names:
        ranges.known(name, known, where, what)
    return names
