"""What the report is told: findings, read back from a run directory and the artifacts it was made from.

In: a config, its data and the run directory with `run.json`, `results.jsonl` and `answers.jsonl`. Out: `Findings`.
"""

import dataclasses
import itertools
import json
import re
from pathlib import Path

from msmjax import artifact
from msmjax.config import IMPORT, Comparison, ExperimentConfig, measures
from msmjax.corpus.sources import NeutralSource, SpecSource
from msmjax.data import rows, show
from msmjax.evals import choice, results
from msmjax.experiment.data import Data, read_items
from msmjax.report.findings import Findings


def read_findings(config: ExperimentConfig, data: Data, workdir: Path, run_directory: Path) -> Findings:
    """What the report shows, read back from the run directory and the artifacts it was made from."""
    said = json.loads((run_directory / "run.json").read_text(encoding="utf-8"))
    arms = {arm: config.arms[arm] for arm in design_order(config)}
    chains = [" > ".join(chain[: depth + 1]) for chain in arms.values() for depth in range(len(chain))]
    labels = sorted(said["stages"], key=lambda label: chains.index(label.rpartition(" seed ")[0]))
    items = read_items(data.items)
    measured = measures(config, items)
    answers = artifact.read_jsonl(run_directory / "answers.jsonl")
    scored: dict[tuple[str, str], set] = {}
    all_lines = sorted(artifact.read_jsonl(run_directory / "results.jsonl"), key=lambda line: list(arms).index(line["arm"]))
    for line in all_lines:
        scored.setdefault((line["arm"], line["eval"]), set()).add(line["seed"])
    unanswered = ""
    if config.comparisons and (missing := _arms_of(config.comparisons[0]) - set(config.run)):
        unanswered = f"This run does not answer the question: that takes {' and '.join(sorted(missing))}, which it leaves out."
    elif config.comparisons and (lost := _unscored(config.comparisons[0], scored)):
        unanswered = (
            f"This run does not answer the question: no answer of {' and '.join(lost)} could be scored on a seed that they share."
        )
    return Findings(
        name=config.name,
        question=config.question,
        arms=arms,
        seeds=config.seeds,
        results=[line for line in all_lines if "cell" not in line],
        cells=[line for line in all_lines if "cell" in line],
        answers=[*answers, *results.gaps(answers)],
        comparisons=[
            {**dataclasses.asdict(comparison), "metric": measured[comparison.eval].metrics[0]}
            for comparison in config.comparisons
            if _arms_of(comparison) <= set(config.run) and not _unscored(comparison, scored)
        ],
        ladders=[
            {"label": ladder.label, "eval": ladder.eval, "dose": ladder.dose, "lines": lines, "saves": ladder.saves}
            for ladder in config.ladders
            if (lines := {name: run for name, rungs in ladder.lines if (run := [rung for rung in rungs if rung[1] in config.run])})
        ],
        grids=[
            {"label": grid.label, "eval": grid.eval, "rows": dict(zip(grid.rows, run, strict=True)), "columns": grid.columns}
            for grid in config.grids
            if any(itertools.chain(*(run := [[arm if arm in config.run else "" for arm in row] for row in grid.arms])))
        ],
        unanswered=unanswered,
        headline=list(config.headline) or [name for name, one in measured.items() if one.metrics != ("bits_per_byte",)],
        descriptions={name: one.meaning for name, one in measured.items()},
        metrics={name: one.metrics[0] for name, one in measured.items()},
        asked=_asked(config, data, items),
        curves={label: artifact.read_jsonl(workdir / "stages" / said["stages"][label] / "metrics.jsonl") for label in labels},
        ledgers={name: rows.read_ledger(directory) for name, directory in data.rows.items()},
        samples={name: [show.pieces(row, data.tokenizer) for row in _first_rows(path)] for name, path in data.rows.items()},
        timings=said["seconds"],
        config=config.source,
        versions={**said["versions"], "computed with": "; ".join(dict.fromkeys(said["computed"].values()))},
    )


def design_order(config: ExperimentConfig) -> list[str]:
    """The arms of `config.run` as tables and figures show them; in which order they run is another matter.

    Midtraining is any stage that stands between the first and the last of some arm of the config. Controls, which read documents
    that are neutral or of a spec whose link is broken, come last; before that, arms without midtraining come before those with it;
    then an arm comes the later, the more corpora its other stages read: the base or the imported model, an instruction mix,
    fine-tuning. Where that is the same, numbers in the names of stages decide (doses), then `config.run`.
    """
    midtraining = {stage for chain in config.arms.values() for stage in chain[1:-1]}

    def corpora(stages: set[str]) -> set[str]:
        return {corpus for stage in stages - {IMPORT} for corpus, _ in config.stages[stage].data}

    def is_control(source) -> bool:
        return isinstance(source, NeutralSource) or (isinstance(source, SpecSource) and source.break_link)

    def place(arm: str) -> tuple:
        chain = config.arms[arm]
        control = any(is_control(config.corpora[corpus]) for corpus in corpora(set(chain)))
        doses = [int(digits) for digits in re.findall(r"\d+", " ".join(chain))]
        return control, not midtraining.isdisjoint(chain), len(corpora(set(chain) - midtraining)), doses

    return sorted(config.run, key=place)


def _asked(
    config: ExperimentConfig, data: Data, items: dict[str, list[dict] | None]
) -> dict[str, tuple[list[show.Piece], list[int]]]:
    """A fine-tuning chat and an item of a choice, as text and as ids: what is trained on in the one, and scored in the other."""
    both = {f"a chat of {config.prompt.like}": data.chat}
    choices = ((name, item) for name, one in items.items() for item in one or [] if "options" in item)
    for name, item in itertools.islice(choices, 1):
        ids, start = choice.ask(item, data.prompt, data.tokenizer, getattr(config.evals[name], "form", choice.FORMS[0]))[0]
        scored = [index >= start for index in range(len(ids))]
        both[f"an item of {item['eval']}, with an answer"] = ids, scored
    return {label: (show.pieces(show.as_row(*one), data.tokenizer), one[0]) for label, one in both.items()}


def _arms_of(comparison: Comparison) -> set[str]:
    return {*comparison.arms, *comparison.against}


def _unscored(comparison: Comparison, scored: dict[tuple[str, str], set]) -> list[str]:
    """The arms of a comparison if they have no seed in common on which an answer to its eval has a score."""
    arms = sorted(_arms_of(comparison))
    seeds = [scored.get((arm, comparison.eval), set()) for arm in arms]
    trained = [of_arm for of_arm in seeds if of_arm != {None}]
    return arms if trained and not set.intersection(*trained) else []


def _first_rows(directory: Path, count: int = 2) -> list[dict]:
    source = rows.open_rows(directory)
    return [source[index] for index in range(min(count, len(source)))]
