"""A campaign of faults: runs are killed, terminated and damaged at random, restarted by the same command, and compared.

    python benchmarks/faults.py                     # over 100 faults; a table, and exit code 1 if anything was lost
    python benchmarks/faults.py --trials kill=4 term=2 pair=1 --steps=60 --seed=7   # a short one

The experiment is small, the code is the whole: every run is `python -m msmjax.main`. A trial is a fresh working directory, a fault
that meets the run before its end (or two), and a restart; then the losses and batch hashes of every step, the final parameters and
optimizer states, and every answer are compared with those of an undisturbed run, bit for bit. Trials of a pair are two processes
of four CPU devices each; they are compared with an undisturbed pair. Two undisturbed runs must be equal. Results are kept in
benchmarks/RESULTS.md.
"""

import argparse
import collections
import contextlib
import json
import os
import random
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import absl.logging
import jax
import numpy as np
import orbax.checkpoint as ocp
from tqdm import tqdm

from msmjax import artifact
from msmjax.main import PREEMPTED
from msmjax.training import checkpoint

ROOT = Path(__file__).resolve().parents[1]
COMMAND = (
    "--config=configs/cheese.py:tiny", "--config.seeds=(0,)", "--config.run=('aft',)",
    "--config.log.metrics_every=6", "--config.log.checkpoint_every=12", "--config.optimizer.micro_batches=1",
)  # fmt: skip
COMPUTED = ("step", "loss", "gradient_norm", "supervised_tokens", "learning_rate", "batch")
DEADLINE = 300  # seconds in which a run must have ended, or it hangs
PEER_DEADLINE = 60  # seconds in which a process must end that was told to, or whose other is gone
FILE_LIMIT = 6_000  # bytes a file may have when the disk is "full": rows fit, checkpoints do not
KINDS = {  # name -> trials of the whole campaign, what happens
    "kill": (30, "kill -9 at a random moment"),
    "save": (15, "kill -9 while a checkpoint is being written"),
    "term": (15, "SIGTERM at a random moment"),
    "damage": (20, "kill -9, then a damaged checkpoint"),
    "full": (4, "a disk on which checkpoints do not fit"),
    "readonly": (4, "checkpoint directories that become read-only"),
    "pair": (8, "kill -9 of one of two processes"),
    "pair-term": (4, "SIGTERM to one of two processes, or to both"),
}


def start(workdir: Path, log, steps: int, pair: int | None = None, port: int = 0, full_disk: bool = False) -> subprocess.Popen:
    """One process of a run whose stages have so many steps; `pair` is its number where there are two."""
    length = [f"--config.stages.{name}.steps={steps}" for name in ("pretrain", "finetune")]
    flags = [] if pair is None else [f"--coordinator=localhost:{port}", "--processes=2", f"--process={pair}"]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1" if pair is None else "4"}
    limit = (lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_LIMIT, FILE_LIMIT))) if full_disk else None
    command = [sys.executable, "-m", "msmjax.main", *COMMAND, *length, f"--workdir={workdir}", *flags]
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log, preexec_fn=limit)


def wait(processes: list[subprocess.Popen], seconds: float) -> list[int | None]:
    """Exit codes; None of a process that did not end in time, which is killed."""
    until, codes = time.monotonic() + seconds, []
    for process in processes:
        try:
            codes.append(process.wait(max(until - time.monotonic(), 0.1)))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            codes.append(None)
    return codes


def start_all(workdir: Path, log, steps: int, pair: bool, full_disk: bool = False) -> list[subprocess.Popen]:
    port = free_port()
    return [start(workdir, log, steps, index if pair else None, port, full_disk) for index in range(2 if pair else 1)]


def run_to_end(workdir: Path, log, steps: int, pair: bool) -> list[int | None]:
    """Starts the run and waits for its end; its exit codes."""
    return wait(start_all(workdir, log, steps, pair), DEADLINE)


def free_port() -> int:
    with contextlib.closing(socket.socket()) as one:
        one.bind(("localhost", 0))
        return one.getsockname()[1]


def stages_of(workdir: Path) -> list[Path]:
    return sorted((workdir / "stages").glob("*-seed*"))


def outcome(workdir: Path, steps: int) -> dict:
    """All that a run computed: per stage the steps' losses and batch hashes, and the final state; and every answer."""
    found = {}
    for stage in stages_of(workdir):
        lines = [json.loads(line) for line in (stage / "metrics.jsonl").read_text().splitlines()]
        last, reader = stage / "checkpoints" / str(steps), ocp.PyTreeCheckpointer()
        arrays = []
        for item in ("params", "optimizer"):  # as they are on the disk, whatever devices they were on
            tree = reader.metadata(last / item).item_metadata.tree
            as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
            arrays += [leaf.tobytes() for leaf in jax.tree.leaves(reader.restore(last / item, restore_args=as_numpy))]
        found[stage.name] = [{name: line[name] for name in COMPUTED} for line in lines], arrays
    (run,) = workdir.glob("cheese_tiny-*")
    return found | {name: (run / name).read_bytes() for name in ("results.jsonl", "answers.jsonl")}


def damage(rng: random.Random, workdir: Path) -> str:
    """Harms the newest checkpoint of a stage at random; what was done, or nothing where there is none yet."""
    newest = [max(steps, key=lambda path: int(path.name)) for stage in stages_of(workdir)
              if (steps := [path for path in (stage / "checkpoints").glob("*") if path.name.isdigit()])]  # fmt: skip
    if not newest:
        return ""
    target = rng.choice(newest)
    files = sorted(path for path in target.rglob("*") if path.is_file())
    kind = rng.choice(("emptied", "truncated", "half copied", "bit flipped", "seal removed"))
    if kind == "emptied":
        shutil.rmtree(target)
        target.mkdir()
    elif kind == "half copied":
        for path in rng.sample(files, len(files) // 2):
            path.unlink()
        (target / checkpoint.SEAL).unlink(missing_ok=True)
    elif kind == "seal removed":
        (target / checkpoint.SEAL).unlink()
    else:
        path = rng.choice([path for path in files if "/d/" in path.as_posix() and path.stat().st_size > 100])
        data = bytearray(path.read_bytes())
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        path.write_bytes(data if kind == "bit flipped" else data[: rng.randrange(len(data))])
    return kind


def wait_for_save(workdir: Path, process: subprocess.Popen) -> None:
    """Returns when a checkpoint is being written, or the process has ended."""
    while process.poll() is None and not any(
        not path.name.isdigit() for stage in stages_of(workdir) for path in (stage / "checkpoints").glob("*")
    ):
        time.sleep(0.001)


@contextlib.contextmanager
def read_only(workdir: Path):
    """Within, no checkpoint can be written; for root, who may write anywhere, that takes an attribute of the file system."""
    directories = [stage / "checkpoints" for stage in stages_of(workdir)]
    change = (["chattr", "+i"], ["chattr", "-i"]) if os.geteuid() == 0 else (["chmod", "a-w"], ["chmod", "u+w"])
    subprocess.run([*change[0], *directories], check=True)
    try:
        yield
    finally:
        subprocess.run([*change[1], *directories], check=True)


def inject(kind: str, rng: random.Random, workdir: Path, log, steps: int, duration: float, wrong: list[str]) -> bool:
    """Starts the run and does `kind` to it; whether that met a run that was still going. What is amiss goes to `wrong`."""
    pair, full_disk, terminated = kind.startswith("pair"), kind == "full", kind.endswith("term")
    good = {stage.name: checkpoint.last_good_step(stage) for stage in stages_of(workdir)}
    processes = start_all(workdir, log, steps, pair, full_disk)
    if full_disk:
        met = wait(processes, DEADLINE) == [2]
    else:
        with contextlib.suppress(subprocess.TimeoutExpired):
            processes[0].wait(rng.uniform(0.2, 1.0) * duration)
        if kind == "save":
            wait_for_save(workdir, processes[0])
        met = all(process.poll() is None for process in processes)
        if kind == "readonly":
            if met := met and bool(stages_of(workdir)):
                with read_only(workdir):
                    # What it still had to save it could not; where all was saved before, it ends well.
                    codes = wait(processes, DEADLINE)
                met = codes == [2]
                if codes not in ([0], [2]):
                    wrong.append(f"a read-only disk ended in exit code {codes[0]}")
            else:
                wait(processes, DEADLINE)
        else:
            victims = processes if kind == "pair-term" and rng.random() < 0.5 else [rng.choice(processes)]
            for victim in victims:
                victim.send_signal(signal.SIGTERM if terminated else signal.SIGKILL)
            codes = wait(processes, PEER_DEADLINE)
            if None in codes:
                wrong.append(f"did not end within {PEER_DEADLINE} s: {codes}")
            # Before SIGTERM is watched for, it kills; then one of two is lost.
            if terminated and met and not set(codes) <= {0, PREEMPTED, -signal.SIGTERM, *([1, -signal.SIGABRT] if pair else [])}:
                wrong.append(f"SIGTERM ended in exit codes {codes}")
            if kind == "pair" and met and 0 in codes:
                wrong.append(f"a process ended well without the other: {codes}")
    for stage in stages_of(workdir):
        if (good.get(stage.name) or 0) > (checkpoint.last_good_step(stage) or 0):
            wrong.append(f"{stage.name}: lost the durable step {good[stage.name]}")
    # A run whose report is written has nothing left to do, and is not to be disturbed by what is done to its checkpoints.
    finished = any(workdir.glob(f"cheese_tiny-*/{artifact.MANIFEST}"))
    return met and not finished and (kind != "damage" or bool(damage(rng, workdir)))


def trial(
    kind: str, rng: random.Random, workdir: Path, steps: int, duration: float, reference: Path, expected: dict
) -> tuple[int, list[str]]:
    """One trial of `kind`: how many faults met the run, and what went wrong, nothing if all is well."""
    wrong: list[str] = []
    injected = 0
    with (workdir / "log.txt").open("w+", encoding="utf-8", errors="replace") as log:
        while not injected:
            for made in ("corpora", "rows", "tokenizers", "stages", "evals"):
                shutil.rmtree(workdir / made, ignore_errors=True)
            for run in workdir.glob("cheese_tiny-*"):
                shutil.rmtree(run)
            if rng.random() < 0.7:  # else the fault may hit the making of the data too
                for made in ("corpora", "rows", "tokenizers"):
                    shutil.copytree(reference / made, workdir / made)
            injected = sum(inject(kind, rng, workdir, log, steps, duration, wrong) for _ in range(rng.choice((1, 1, 2))))
        good = {stage.name: checkpoint.last_good_step(stage) for stage in stages_of(workdir)}
        restarted = log.tell()
        codes = run_to_end(workdir, log, steps, kind.startswith("pair"))
        log.seek(restarted)
        said = log.read()
    if set(codes) != {0}:
        return injected, [*wrong, f"the restart ended in {codes}: {said[-500:]!r}"]
    for name, step in good.items():
        stage, _, rest = name.partition("-seed")
        continued = re.findall(rf"{stage} seed {rest.partition('-')[0]}: continues from step (\d+)", said)
        if continued and continued != [str(step)]:
            wrong.append(f"{name}: continued from {continued} and not from the durable step {step}")
    found = outcome(workdir, steps)
    return injected, wrong + [f"{name}: not equal" for name in expected if found.get(name) != expected[name]]


def main() -> None:
    absl.logging.set_verbosity(absl.logging.ERROR)  # orbax warns of metadata that it does not need
    whole = {kind: count for kind, (count, _) in KINDS.items()}
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="\n".join(f"{kind:>10}: {what} ({count})" for kind, (count, what) in KINDS.items()),
    )  # fmt: skip
    parser.add_argument("--trials", nargs="+", metavar="KIND=N", help="how many of which kind; all as below unless given")
    parser.add_argument("--steps", type=int, default=240, help="of each of the two stages")
    parser.add_argument("--seed", type=int, default=0, help="of what happens when")
    arguments = parser.parse_args()
    if arguments.trials is not None:
        given = dict(trial.partition("=")[::2] for trial in arguments.trials)
        if wrong := [f"{kind}={count}" for kind, count in given.items() if kind not in KINDS or not count.isdecimal()]:
            parser.error(f"{wrong[0]}: not KIND=N; kinds are {', '.join(KINDS)}")
        whole = {kind: int(count) for kind, count in given.items()}
    kinds = [kind for kind, count in whole.items() for _ in range(count)]
    table: dict[str, collections.Counter] = collections.defaultdict(collections.Counter)
    with tempfile.TemporaryDirectory() as work:
        references = {}
        for pair in sorted({kind.startswith("pair") for kind in kinds}):
            outcomes = []
            for turn in range(2):  # the second says how long a run takes that finds what was compiled, where that is kept
                directory = Path(work) / f"reference{int(pair)}{turn}"
                directory.mkdir()
                started = time.monotonic()
                with (directory / "log.txt").open("w") as log:
                    if any(codes := run_to_end(directory, log, arguments.steps, pair)):
                        sys.exit(f"the undisturbed run ended in {codes}: {(directory / 'log.txt').read_text()[-2000:]}")
                duration = time.monotonic() - started
                outcomes.append(outcome(directory, arguments.steps))
            if outcomes[0] != outcomes[1]:
                sys.exit("two undisturbed runs are not equal, so that a disturbed one that is not would say nothing")
            references[pair] = duration, directory, outcomes[1]
        for index, kind in enumerate(bar := tqdm(kinds, unit="trial", disable=None)):
            bar.set_postfix_str(kind)
            workdir = Path(work) / f"trial{index}"
            workdir.mkdir()
            rng, reference = random.Random(f"{arguments.seed}/{index}"), references[kind.startswith("pair")]
            injected, wrong = trial(kind, rng, workdir, arguments.steps, *reference)
            unequal, lost = any("not equal" in one for one in wrong), any("not equal" not in one for one in wrong)
            resumed = not any("restart ended" in one for one in wrong)
            table[kind].update({"runs": 1, "faults": injected, "resumed": resumed, "bitwise equal": resumed and not unequal})
            table[kind].update({"unequal": unequal, "lost": lost})
            for one in wrong:
                tqdm.write(f"seed {arguments.seed}, trial {index} ({kind}): {one}", file=sys.stderr)
            shutil.rmtree(workdir)
    columns = ("runs", "faults", "resumed", "bitwise equal", "unequal", "lost")
    print(f"seed {arguments.seed}; jax {jax.__version__}, orbax {ocp.__version__}, python {sys.version.split()[0]}")
    print("| fault | " + " | ".join(columns) + " |\n|---|" + "---|" * len(columns))
    for kind, counts in table.items():
        print(f"| {kind} | " + " | ".join(str(int(counts[column])) for column in columns) + " |")
    sys.exit(any(counts["unequal"] or counts["lost"] for counts in table.values()))


if __name__ == "__main__":
    main()
