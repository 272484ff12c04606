"""All that is measured on one GPU, part by part: what each prints goes to one Markdown file, its figures to one JSON file.

    benchmarks/gpu.sh                 # on a GPU; at most eight minutes on one H100
    benchmarks/gpu.sh --dry           # every part with tiny shapes, on a CPU too, in two minutes

A part is a command of its own; one that fails, or takes longer than it may, is said, and the others go on. The exit code is 1 then.
"""

import argparse
import datetime
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BIG = ("--dtype=bfloat16", "--length=4096", "--supervised=1", "--turns=1", "--profile")
TINY = ("--model=tiny", "--length=128", "--rows=2", "--turns=1", "--steps=1")
# xdist, which pyproject.toml asks for, need not be there; and only one process can have the card.
PYTEST = ("-m", "pytest", "-v", "-p", "no:cacheprovider", "-o", "addopts=--import-mode=importlib")
# Name -> seconds it may take, the command on a GPU, the command when dry.
PARTS = {
    "train 8B LoRA": (
        120,
        (
            "benchmarks/train_throughput.py",
            "--model=llama31_8b",
            "--modes=lora",
            "--rows=2",
            "--loss_chunk=2048",
            "--steps=5",
            *BIG,
        ),
        ("benchmarks/train_throughput.py", "--modes=lora", "--profile", *TINY),
    ),
    "train 1B full": (
        100,
        (
            "benchmarks/train_throughput.py",
            "--model=llama32_1b",
            "--modes=full",
            "--rows=4",
            "--loss_chunk=2048",
            "--steps=8",
            *BIG,
        ),
        ("benchmarks/train_throughput.py", "--modes=full", *TINY),
    ),
    "generation": (
        100,
        ("benchmarks/generation.py", "--model=llama32_1b", "--dtype=bfloat16", "--prompts=64", "--length=128", "--new=128"),
        ("benchmarks/generation.py", "--model=tiny", "--prompts=4", "--length=32", "--new=16"),
    ),
    "attention": (
        60,
        (
            "benchmarks/attention.py",
            "--rows=2",
            "--length=4096",
            "--heads=32",
            "--kv_heads=8",
            "--head_dim=128",
            "--dtype=bfloat16",
        ),
        ("benchmarks/attention.py", "--rows=1", "--length=256", "--turns=1"),
    ),
    "tests": (
        160,
        (*PYTEST, "tests/test_device.py"),
        (*PYTEST, "tests/test_device.py", "-k", "near_float32"),
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dry", action="store_true", help="tiny shapes, on a CPU too")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="only these")
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"), help="where gpu.json and gpu.md go")
    parser.add_argument("--commit", help="of this code, where git cannot say")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    said = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="minutes"),
        "commit": arguments.commit or commit(),
        **machine(),
    }
    lines = [f"{key}: {value}" for key, value in said.items()]
    print("\n".join(lines))
    parts, started = {}, time.perf_counter()
    for name in arguments.parts:
        limit, real, dry = PARTS[name]
        figures = arguments.out / f"{name.replace(' ', '-')}.json"
        command = [sys.executable, *(dry if arguments.dry else real)]
        command += [] if name == "tests" else [f"--json={figures.resolve()}"]
        environment = os.environ | {
            "MSMJAX_TEST_PLATFORM": "cpu" if arguments.dry else "gpu",
            "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.92",
        }
        print(f"\n### {name}\n", flush=True)
        part_started = time.perf_counter()
        with subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
        ) as process:
            try:
                out, _ = process.communicate(timeout=limit)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, 9)
                out, _ = process.communicate()
                out += f"\nstopped after {limit} s"
        seconds = time.perf_counter() - part_started
        code = process.returncode
        if code == 0:  # warnings of libraries are for those who look at failures
            out = "\n".join(
                line
                for line in out.splitlines()
                if line.startswith(("|", "lora:", "full:", "ours /", "the products", "cudnn", "splash")) or "passed" in line
            )
        print(out, f"\n{name}: {'done' if code == 0 else f'failed with {code}'} in {seconds:.0f} s", flush=True)
        lines += [f"\n### {name}\n", out, *([f"failed with {code}"] if code else [])]
        parts[name] = {"code": code, "seconds": seconds, "figures": json.loads(figures.read_text()) if figures.exists() else None}
        (arguments.out / "gpu.json").write_text(json.dumps({**said, "parts": parts}, indent=1) + "\n", encoding="utf-8")
        (arguments.out / "gpu.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    failed = [name for name, part in parts.items() if part["code"]]
    seconds = time.perf_counter() - started
    print(f"\n{len(parts) - len(failed)} of {len(parts)} parts in {seconds:.0f} s: {arguments.out}/gpu.md, gpu.json")
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


def commit() -> str:
    done = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip() or "not known"


def machine() -> dict[str, str]:
    """The card and the versions that its figures depend on."""
    import importlib.metadata

    try:
        asked = ["nvidia-smi", "--query-gpu=name,driver_version,power.limit", "--format=csv,noheader"]
        card = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        card = f"no GPU; {platform.processor() or platform.machine()}"
    installed = {dist.metadata["Name"]: dist.version for dist in importlib.metadata.distributions()}
    names = ("jax", "jaxlib", "flax", "optax", "nvidia-cudnn-cu13", "nvidia-cudnn-cu12", "torch", "transformers", "peft")
    return {"card": card, "versions": ", ".join(f"{name} {installed[name]}" for name in names if name in installed)}


if __name__ == "__main__":
    main()
