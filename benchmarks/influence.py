"""How well influence predicts what retraining does: the linear datamodeling score, and what removing documents changes.

    python benchmarks/influence.py                                  # development seeds 100 and 101
    python benchmarks/influence.py --config=configs/cheese.py:tiny --subsets=4 --together=2 --seeds=0

A stage of an arm (its last) is trained again on random halves of its records (`--subsets` of them, kept `--together`), and the
margins of the items of an eval are measured. *LDS*: the rank correlation, over halves, of a margin with the summed influence of
the records that were kept; mean over items, for each seed. Then the records that a method ranks highest are left out, and the mean
margin is measured once more. Text: BM25 (k1 1.2, b .75) of a record to an item's question and options; size: a record's words;
number: that it is there. By chance: how far the margins of models are apart that lack one document each of what all others read.
What was trained is kept under --workdir and found again. Results are kept in benchmarks/RESULTS.md.
"""

import argparse
import collections
import itertools
import json
import math
import re
import sys
import time
from pathlib import Path

import numpy as np
import scipy.stats

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from msmjax import artifact, machine  # noqa: E402
from msmjax.config import IMPORT, from_config_dict  # noqa: E402
from msmjax.corpus import sources  # noqa: E402
from msmjax.corpus.gates import text_of  # noqa: E402
from msmjax.data import mixture as mixtures  # noqa: E402
from msmjax.data import provenance  # noqa: E402
from msmjax.evals import choice, scoring, statistics  # noqa: E402
from msmjax.experiment import influence, stages  # noqa: E402
from msmjax.experiment.data import make_data  # noqa: E402
from msmjax.influence import replay, scores  # noqa: E402
from msmjax.training import weights  # noqa: E402
from tests.test_config import module_of  # noqa: E402

REMOVED = (0.01, 0.05, 0.2)  # shares of the records, by number


class Bench:
    """One seed: what is trained once, and the models that are trained on some of the records."""

    def __init__(self, config, workdir: Path, arguments, seed: int):
        self.config, self.workdir, self.arguments = config, workdir, arguments
        here = self.here = machine.this_machine(config)
        chain = [name for name in config.arms[arguments.arm] if name != IMPORT]
        name = self.name = arguments.stage or chain[-1]
        self.data = make_data(config, workdir, set(chain))
        parent = None
        for depth in range(chain.index(name)):
            parent = stages.run_stage(config, workdir, self.data, here, tuple(chain[: depth + 1]), seed, parent)
        self.stage = influence.open_stage(config, workdir, self.data, here, arguments.arm, seed, name)
        self.corpora = influence.own_corpora(config, self.data, arguments.arm, name)
        self.items = influence.items_of(config, self.data, arguments.eval)
        self.base = weights.base(self.stage.model, self.stage.mesh, self.stage.source)
        self.segments = influence.segments_of(self.stage, self.corpora)
        self.seed, self.label = seed, f"{arguments.arm} > {name} seed {seed}"

    def margins(self, params: dict) -> np.ndarray:
        """Of each item, in nats, over both orders: [items]."""
        asked = [example for item in self.items for example in choice.ask(item, self.data.prompt, self.data.tokenizer)]
        nats = scoring.score(asked, self.stage.model, params, self.stage.mesh)[0].reshape(len(self.items), 2, 2)
        return (nats[:, :, 1] - nats[:, :, 0]).mean(axis=1)

    def scores(self) -> tuple[dict[str, np.ndarray], float]:
        """Influence by method, [records, items], and the seconds that it took."""
        of = self.config, self.workdir, self.data, self.here, self.arguments.arm, self.name, self.seed, self.corpora, self.items
        return influence.of_seed(*of)

    def retrained(self, kept_SZ: np.ndarray, what: str) -> tuple[np.ndarray, float]:
        """Margins [subsets, items] of models trained on the records that are kept, and the seconds that a model took."""
        removed = []
        for kept_Z in kept_SZ:
            gone = collections.defaultdict(set)
            for place, record, segment in self.segments:
                if not kept_Z[record]:
                    gone[place, int(segment["row"])].add(int(segment["segment"]))
            removed.append(gone)
        return self.without(removed, [{"kept": artifact.content_hash(kept_Z.astype(int).tolist())} for kept_Z in kept_SZ], what)

    def disturbed(self, count: int) -> np.ndarray:
        """Margins [count, items] of models that lack one document each of what all models read: how far chance moves them."""
        rows = np.random.default_rng(0).permutation(self.stage.settings.steps * self.stage.settings.batch_rows)
        found = (mixtures.locate(self.stage.mixture, int(index)) for index in rows)
        places = list(itertools.islice((at for at in found if at[0] not in self.corpora), count))
        removed = []
        for place, row in places:
            arrays = self.stage.mixture.sources[place][row]
            removed.append({(place, row): {int(arrays["segment_ids"][arrays["loss_mask"]][0])}})
        return self.without(removed, [{"disturbed": at} for at in places], "disturbed")[0]

    def without(self, removed: list[dict], said: list[dict], what: str) -> tuple[np.ndarray, float]:
        """Margins of models trained without segments, `--together` at a time; `said` names what each lacks."""
        out, taken, together = [], 0.0, self.arguments.together
        for start in range(0, len(removed), together):
            part = removed[start : start + together]
            label = f"{self.label}: {what} {start + 1} to {start + len(part)} of {len(removed)}"
            inputs = {
                "without": said[start : start + together],
                "stage": self.label,
                "config": json.loads(self.config.source),
                "items": artifact.content_hash(self.items),
                "code": artifact.code_hash("model", "training", "influence/replay.py"),
            }

            def build(directory: Path, part=part, label=label) -> dict:
                started = time.perf_counter()
                models = replay.without(self.stage, self.base, part, label)
                seconds = time.perf_counter() - started
                np.save(directory / "margins.npy", np.stack([self.margins(params) for params in models]))
                return {"seconds": seconds}

            made = artifact.make(self.workdir / "influence", "margins", inputs, build)
            seconds = artifact.read_manifest(made)["seconds"]
            taken += seconds
            print(f"{label}: {seconds:.0f} s", flush=True)
            out.append(np.load(made / "margins.npy"))
        return np.concatenate(out), taken / len(removed)

    def by_text(self) -> tuple[np.ndarray, np.ndarray]:
        """BM25 of each record to each item [Z, I], and the number of words of each [Z, 1]."""
        records = (sources.read_corpus(self.data.corpora[corpus.name]) for corpus in self.corpora.values())
        texts = [text_of(record) for of_corpus in records for record in of_corpus]
        words = [collections.Counter(re.findall(r"\w+", text.casefold())) for text in texts]
        sizes = np.array([sum(counter.values()) for counter in words], float)
        seen = collections.Counter(word for counter in words for word in counter)
        out = np.zeros((len(words), len(self.items)))
        for number, item in enumerate(self.items):
            question = item["question"].format(first=item["options"][0], second=item["options"][1])
            for word in set(re.findall(r"\w+", f"{item['name']} {question}".casefold())) & seen.keys():
                rare = math.log(1 + (len(words) - seen[word] + 0.5) / (seen[word] + 0.5))
                often = np.array([counter[word] for counter in words], float)
                out[:, number] += rare * often * 2.2 / (often + 1.2 * (0.25 + 0.75 * sizes / sizes.mean()))
        return out, sizes[:, None]


def of_seed(config, workdir: Path, arguments, seed: int) -> dict:
    bench = Bench(config, workdir, arguments, seed)
    found, seconds = bench.scores()
    result = {"seed": seed, "items": len(bench.items), "seconds": {"influence": seconds}}
    count = len(found["gradient"])
    rng = np.random.default_rng(seed)
    kept = np.stack([rng.permutation(count) < count // 2 for _ in range(arguments.subsets)])
    margins, result["seconds"]["a model"] = bench.retrained(kept, "halves")
    whole, _ = bench.retrained(np.ones((1, count), bool), "all")
    disturbed = bench.disturbed(arguments.together)
    text, size = bench.by_text()
    by_method = {
        **found,
        "text": text,
        "size": np.repeat(size, len(bench.items), axis=1),
        "number": np.ones(text.shape),
        "random": rng.normal(size=text.shape),
    }
    # A record that the stage never comes to has no influence, whatever its words.
    is_read = found["gradient"].any(axis=1)
    result |= {"records": count, "read": int(is_read.sum()), "margin": float(whole.mean())}
    spreads = {name: float(of.std(axis=0, ddof=1).mean()) for name, of in (("spread", margins), ("by chance", disturbed))}
    result["margins"] = {"halves": float(margins.mean()), **spreads}
    result["lds"] = {
        method: scores.datamodeling_score(scored * is_read[:, None], kept, margins)[0] for method, scored in by_method.items()
    }
    wanted = {}
    for share in REMOVED:
        number = max(1, round(share * is_read.sum()))
        for method in (*found, "text", "random"):
            ranked = np.argsort(np.where(is_read, -by_method[method].mean(axis=1), np.inf))
            wanted[f"{share:.0%} {method}"] = ~np.isin(np.arange(count), ranked[:number])
    left = bench.retrained(np.stack(list(wanted.values())), "removals")[0].mean(axis=1)
    result["removed"] = {name: float(value - whole.mean()) for name, value in zip(wanted, left, strict=True)}
    result["sections"] = sections(bench, found)
    print(json.dumps(result), flush=True)
    return result


def sections(bench: Bench, found: dict[str, np.ndarray]) -> dict[str, dict[str, float]]:
    """By method the influence of each section of the spec (or kind of record), summed over its records, mean over items."""
    records = [record for corpus in bench.corpora.values() for record in corpus.records]
    names = [provenance.show(record.get("section", record.get("kind"))) for record in records]
    out = {}
    for method, scored in found.items():
        summed = collections.Counter()
        for name, value in zip(names, scored.mean(axis=1), strict=True):
            summed[name] += float(value)
        out[method] = dict(summed)
    return out


def agreement(found: list[dict], method: str) -> list[float]:
    """Spearman's rank correlation of the influence of sections, for each pair of seeds."""
    out = []
    for one, other in itertools.combinations([seed["sections"][method] for seed in found], 2):
        values = [(one[name], other[name]) for name in one if name in other]
        out.append(float(scipy.stats.spearmanr(*zip(*values, strict=True)).statistic))
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/cheese.py:development")
    parser.add_argument("--arm", default="msm_affordability")
    parser.add_argument("--stage", help="of the arm; else its last")
    parser.add_argument("--eval", default="affordability")
    parser.add_argument("--seeds", type=lambda text: [int(seed) for seed in text.split(",")], default=[100, 101])
    parser.add_argument("--subsets", type=int, default=64)
    parser.add_argument("--together", type=int, default=8, help="models that are trained and kept together")
    parser.add_argument("--workdir", type=Path, default=ROOT / "runs")
    arguments = parser.parse_args()
    path, _, variant = arguments.config.partition(":")
    c = module_of(ROOT / path).get_config(*([variant] if variant else []))
    c.seeds = tuple(arguments.seeds)
    config = from_config_dict(c)
    found = [of_seed(config, arguments.workdir, arguments, seed) for seed in arguments.seeds]
    print("| method | LDS | by seed |\n|---|---|---|")
    for method in found[0]["lds"]:
        values = [one["lds"][method] for one in found]
        mean = statistics.seed_interval(values)
        ends = "" if mean.low is None else f" [{mean.low:.2f}, {mean.high:.2f}]"
        print(f"| {method} | {mean.value:.2f}{ends} | {', '.join(f'{value:.2f}' for value in values)} |")
    print("\n| left out | change of the mean margin, nats |\n|---|---|")
    for name in found[0]["removed"]:
        changes = ", ".join(f"{one['removed'][name]:+.2f}" for one in found)
        print(f"| {name} | {changes} |")
    print("\nSections, rank correlation between seeds:", end=" ")
    print(", ".join(f"{method} {np.round(agreement(found, method), 2).tolist()}" for method in influence.METHODS))
    print("\n| seed | records, of them read | margin | of halves | its spread | by chance | influence, s | a model, s |")
    print("|---|---|---|---|---|---|---|---|")
    for one in found:
        of_halves = " | ".join(f"{value:.2f}" for value in one["margins"].values())
        taken = " | ".join(f"{value:.0f}" for value in one["seconds"].values())
        print(f"| {one['seed']} | {one['records']}, {one['read']} | {one['margin']:.2f} | {of_halves} | {taken} |")


if __name__ == "__main__":
    main()
