"""Claims: several experiments of which each answers for some, and one table of all their answers.

In: a `ClaimsConfig`. Out: the run directories of its experiments, and `<name>-<hash>/` with `claims.jsonl` and `claims.html`.
"""

import dataclasses
import inspect
import json
import os
import runpy
from pathlib import Path

from msmjax import artifact
from msmjax.artifact import BadInput
from msmjax.config import ClaimsConfig, ExperimentConfig, from_config_dict
from msmjax.experiment import run as experiment
from msmjax.experiment.evaluation import check_needs
from msmjax.ranges import suggestion
from msmjax.report import claims as page
from msmjax.training import processes


def load(config: ClaimsConfig) -> dict[str, ExperimentConfig]:
    """The experiments that claims name, by that name, with the seeds of the claims. Raises BadInput where there is no such file or
    variant, or where it makes no comparison that a claim names."""
    out = {}
    for name in dict.fromkeys(claim.config for claim in config.claims):
        path, _, variant = name.partition(":")
        if not Path(path).is_file():
            raise BadInput(f"claims: {path}: no such file; name a config as after --config, from the directory you start in")
        get_config = runpy.run_path(path).get("get_config")
        if not callable(get_config):
            raise BadInput(f"claims: {path}: defines no get_config")
        if variant and not inspect.signature(get_config).parameters:
            raise BadInput(f"claims: {name}: takes no variant")
        try:
            one = get_config(variant) if variant else get_config()
        except ValueError as error:
            raise BadInput(f"claims: {error}") from None
        one.seeds = config.seeds
        out[name] = from_config_dict(one)
    for claim in config.claims:
        one = out[claim.config]
        labels = [comparison.label for comparison in one.comparisons if {*comparison.arms, *comparison.against} <= set(one.run)]
        if claim.comparison not in labels:
            raise BadInput(f"claims: {claim.config} makes no comparison {claim.comparison!r}{suggestion(claim.comparison, labels)}")
    return out


def run(config: ClaimsConfig, experiments: dict[str, ExperimentConfig], workdir: Path) -> None:
    """Runs what is missing of the experiments, one after the other, then judges. Every process of the run must call it."""
    made = {}
    for one in experiments.values():
        check_needs(one)
    for number, (name, one) in enumerate(experiments.items(), 1):
        if processes.is_first():
            print(f"{name}: experiment {number} of {len(experiments)}", flush=True)
        made[name] = experiment.run(one, workdir)
    if not processes.is_first():
        return
    inputs = {"config": json.loads(config.source), "runs": [path.name for path in made.values()]}
    directory = artifact.path(workdir, config.name, inputs)
    directory.mkdir(exist_ok=True)
    measured = []
    for claim in config.claims:
        lines = artifact.read_jsonl(made[claim.config] / "comparisons.jsonl")
        line = next(line for line in lines if line["label"] == claim.comparison)
        report = os.path.relpath(made[claim.config] / "report.html", directory)
        measured.append(
            {"claim": claim.claim, "paper": claim.paper, "config": claim.config, "label": claim.comparison, "eval": line["eval"],
             "metric": line["metric"], "summed": len(line["arms"]), "report": report, "per_seed": line["per_seed"]}
        )  # fmt: skip
    judged = page.judge(measured)
    said = json.loads((next(iter(made.values())) / "run.json").read_text(encoding="utf-8"))
    artifact.write_jsonl(directory / "claims.jsonl", ({**dataclasses.asdict(one), "verdict": one.verdict} for one in judged))
    versions = {name: version for name, version in said["versions"].items() if name != "config"}
    page.write(config.name, config.question, config.seeds, judged, versions, directory / "claims.html")
    artifact.write_manifest(directory, inputs, {})
    page.print_table(config.name, judged)
    print(f"claims: {directory / 'claims.html'}")
