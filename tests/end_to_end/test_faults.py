"""A short campaign of faults on the real program: whatever was pulled, the restarted run is the undisturbed one, bit for bit."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FAULTS = {"save": 1, "damage": 1}  # the whole campaign runs nightly


def test_nothing_is_lost():
    """A kill in a save, and one before damage: none unequal."""
    command = [
        sys.executable,
        str(ROOT / "benchmarks" / "faults.py"),
        "--steps=36",
        "--trials",
        *(f"{kind}={count}" for kind, count in FAULTS.items()),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, done.stdout + done.stderr
    table = {row[0]: [int(count) for count in row[1:]] for row in re.findall(r"\| (\w+)" + r" \| (\d+)" * 6 + r" \|", done.stdout)}
    assert table.keys() == FAULTS.keys()
    for kind, (runs, faults, resumed, equal, unequal, lost) in table.items():
        assert runs == resumed == equal == FAULTS[kind]
        assert faults >= runs
        assert unequal == lost == 0
