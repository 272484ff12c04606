"""The launchers: what they render, what they refuse, how often they start again; and the local one for real.

The commands they call (gcloud, kubectl, sbatch, srun, python, ...) are stubs that come first on PATH, write down how they were
called and then do what the test says. Nothing here reaches a network.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest
import yaml

from msmjax.main import INTERRUPTED, PREEMPTED

ROOT = Path(__file__).resolve().parents[2]
GOOD = {
    "local.sh": ["--processes=2"],
    "slurm.sh": ["--nodes=2", "--gpus-per-node=4", "--time=1-12:00:00"],
    "tpu_vm.sh": ["--name=cheese", "--zone=us-east5-b", "--type=v6e-16", "--version=v2-alpha-tpuv6e"],
    "gke_jobset.sh": ["--name=cheese", "--image=host/me/msmjax:1", "--accelerator=tpu-v6e-slice", "--topology=4x4", "--claim=disk"],
}
ODD = [
    "--config=configs/cheese.py:tiny", "--config.seeds=(0,1)", "--workdir=/shared/my runs",
    "--a='one' \"two\" it's", "--b=two\nlines\ttab",
    "--c=$HOME ${HOME} $(id) $$ `id`", "--d=\\ \\n * ? [a] {b,c} ~ # ; & | < > !", "--e=ünï 例", "", "~", "--f=&& \\1 \\&",
]  # fmt: skip
PLAIN = ["--config=configs/cheese.py:tiny", "--workdir=/shared/runs"]


class Place:
    """A directory with stubs in front of PATH, and the list of their calls."""

    def __init__(self, path: Path):
        self.path, self.log, self.bin = path, path / "calls", path / "bin"
        self.bin.mkdir()
        self.env = {key: value for key, value in os.environ.items() if not key.startswith(("XLA_", "JAX_", "SLURM_"))}
        self.env |= {"PATH": f"{self.bin}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT), "TMPDIR": str(path), "HOME": str(path)}
        for name in ("gcloud", "kubectl", "sbatch", "srun", "scontrol", "pkill"):
            self.stub(name, "sys.exit(99)")

    def stub(self, name: str, body: str) -> None:
        file = self.bin / name
        file.write_text(
            f"#!{sys.executable} -IS\nimport json, os, signal, subprocess, sys, time\nfrom pathlib import Path\n"
            f"here = Path({str(self.path)!r})\nname, arguments = {name!r}, sys.argv[1:]\n"
            "with open(here / 'calls', 'a') as log: log.write(json.dumps([name, *arguments]) + '\\n')\n"
            "def next_of(file):\n    values = json.loads((here / file).read_text())\n"
            "    (here / file).write_text(json.dumps(values[1:]))\n    return values[0]\n" + body + "\n"
        )
        file.chmod(0o755)

    def python_exits(self, *codes: int) -> None:
        """A python that does nothing and exits with the next of these codes."""
        (self.path / "codes").write_text(json.dumps(codes))
        self.stub("python", "sys.exit(next_of('codes'))")

    def calls(self, name: str | None = None) -> list[list[str]]:
        if not self.log.exists():
            return []
        calls = [json.loads(line) for line in self.log.read_text().splitlines()]
        return [call for call in calls if name in (None, call[0])]

    def run(self, *command, **keywords) -> subprocess.CompletedProcess:
        env = self.env | keywords.pop("env", {})
        return subprocess.run(
            [str(part) for part in command], env=env, cwd=ROOT, capture_output=True, text=True, timeout=60, **keywords
        )

    def launch(self, script: str, *flags, arguments=PLAIN) -> subprocess.CompletedProcess:
        return self.run(ROOT / "launch" / script, *GOOD[script], *flags, "--", *arguments)

    def render(self, script: str, *flags, arguments=PLAIN) -> str:
        done = self.launch(script, *flags, "--dry-run", arguments=arguments)
        assert done.returncode == 0, done.stderr
        assert not done.stderr
        assert not self.calls(), "a dry run ran something"
        return done.stdout


@pytest.fixture
def place(tmp_path):
    return Place(tmp_path)


def shellcheck(*arguments, text=None):
    tool = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    assert tool, "shellcheck: not installed; pip install -e '.[test]'"
    done = subprocess.run([tool, *map(str, arguments)], input=text, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout


def test_scripts_pass_shellcheck():
    scripts = sorted((ROOT / "launch").iterdir())
    assert {script.name for script in scripts} == set(GOOD)
    assert all(os.access(script, os.X_OK) for script in scripts)
    shellcheck(*scripts, ROOT / "benchmarks" / "gpu.sh")


@pytest.mark.parametrize("script", ["local.sh", "slurm.sh", "tpu_vm.sh"])
@pytest.mark.parametrize("arguments", [PLAIN, ODD], ids=["plain", "odd"])
def test_rendered_shell_passes_shellcheck(place, script, arguments):
    # Below a warning is only that $ does not expand in single quotes, which is what they are for.
    shellcheck("--severity=warning", "--shell=bash", "-", text=place.render(script, arguments=arguments))


@pytest.mark.parametrize("script", GOOD)
def test_help_names_every_flag(place, script):
    done = place.run(ROOT / "launch" / script, "--help")
    assert done.returncode == 0
    for flag in re.findall(r"^    (--[a-z-]+)=?\*?\)", (ROOT / "launch" / script).read_text(), re.MULTILINE):
        if flag not in ("--", "--help"):
            assert f"    {flag}" in done.stdout
    assert f"launch/{script}" in done.stdout


BAD = [
    ("local.sh", ["--processes=0"], "--processes=0"),
    ("local.sh", ["--processes"], "--processes"),
    ("local.sh", ["--devices-per-process=x"], "--devices-per-process=x"),
    ("local.sh", ["--grace="], "--grace="),
    ("local.sh", ["--retries=-1"], "--retries=-1"),
    ("slurm.sh", ["--nodes="], "--nodes="),
    ("slurm.sh", ["--gpus-per-node=all"], "--gpus-per-node=all"),
    ("slurm.sh", ["--time=soon"], "--time=soon"),
    ("slurm.sh", ["--partition=a b"], "--partition=a b"),
    ("slurm.sh", ["--name=a\n#SBATCH --x"], "--name=a"),
    ("slurm.sh", ["--cpus-per-task=0"], "--cpus-per-task=0"),
    ("slurm.sh", ["--grace=1m"], "--grace=1m"),
    ("slurm.sh", ["--sbatch=account=me"], "--sbatch=account=me"),
    ("tpu_vm.sh", ["--name=Cheese"], "--name=Cheese"),
    ("tpu_vm.sh", ["--zone="], "--zone="),
    ("tpu_vm.sh", ["--type=v6e"], "--type=v6e"),
    ("tpu_vm.sh", ["--version=a b"], "--version=a b"),
    ("tpu_vm.sh", ["--project=a b"], "--project=a b"),
    ("tpu_vm.sh", ["--ref=--help"], "--ref=--help"),
    ("gke_jobset.sh", ["--name=" + "a" * 41], "--name=a"),
    ("gke_jobset.sh", ["--image="], "--image="),
    ("gke_jobset.sh", ["--accelerator=h100"], "--accelerator=h100"),
    ("gke_jobset.sh", ["--topology=16"], "--topology=16"),
    ("gke_jobset.sh", ["--topology=4x0"], "--topology=4x0"),
    ("gke_jobset.sh", ["--chips-per-host=3"], "--chips-per-host=3"),
    ("gke_jobset.sh", ["--claim="], "--claim="),
    *((script, ["--retries=many"], "--retries=many") for script in GOOD),
    *((script, ["--config=configs/cheese.py"], "--config=configs/cheese.py") for script in GOOD),
]


@pytest.mark.parametrize(("script", "flags", "named"), BAD)
def test_bad_flags_are_one_line(place, script, flags, named):
    done = place.launch(script, *flags)
    assert done.returncode == 2
    assert done.stderr.startswith(f"{script}: {named}")
    assert done.stderr.count("\n") == 1 + sum(flag.count("\n") for flag in flags)
    assert not done.stdout
    assert not place.calls()


@pytest.mark.parametrize("script", GOOD)
def test_nothing_to_run_is_bad_input(place, script):
    done = place.launch(script, arguments=[])
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "--config" in done.stderr


@pytest.mark.parametrize("script", ["tpu_vm.sh", "gke_jobset.sh"])
@pytest.mark.parametrize("workdir", [[], ["--workdir=runs"], ["--workdir=gs://bucket/runs"], ["--config=x--workdir=/shared"]])
def test_a_workdir_that_is_not_shared_is_bad_input(place, script, workdir):
    done = place.launch(script, arguments=["--config=configs/cheese.py", *workdir])
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith(f"{script}: --workdir: ")
    assert not place.calls()


# local.sh


def expected_local(call, process, arguments):
    assert call[:4] == ["python", "-u", "-m", "msmjax.main"]
    assert re.fullmatch(r"--coordinator=127\.0\.0\.1:\d{5}", call[4])
    assert call[5:] == ["--processes=2", f"--process={process}", *arguments]


def test_local_runs_what_its_dry_run_prints(place):
    place.stub("python", "")
    text = place.render("local.sh", arguments=ODD)
    assert place.run("bash", "-c", text).returncode == 0
    assert place.launch("local.sh", arguments=ODD).returncode == 0
    calls = place.calls("python")
    assert len(calls) == 4
    for pair in (calls[:2], calls[2:]):
        assert len({call[4] for call in pair}) == 1
        for process, call in enumerate(sorted(pair, key=lambda call: call[6])):
            expected_local(call, process, ODD)


def exits(codes: dict[int, list[int]]) -> str:
    """A process whose n-th start exits with the n-th code of its process; -1: waits to be stopped."""
    return (
        "me = next(int(a[10:]) for a in arguments if a.startswith('--process='))\n"
        "starts_of = lambda process: sum(f'\"--process={process}\"' in line for line in open(here / 'calls'))\n"
        f"starts = starts_of(me)\ncode = {codes}[me][starts - 1]\n"
        "if code < 0: time.sleep(30)\n"
        "while starts_of(1 - me) < starts: time.sleep(0.01)\n"
        "sys.exit(code)"
    )


@pytest.mark.parametrize(
    ("codes", "flags", "starts", "code"),
    [
        ([PREEMPTED, PREEMPTED, 0], [], 3, 0),
        ([PREEMPTED] * 3, ["--retries=2"], 3, PREEMPTED),
        ([PREEMPTED], ["--retries=0"], 1, PREEMPTED),
        ([2], [], 1, 2),
        ([7], [], 1, 7),
    ],
)
def test_local_retries(place, codes, flags, starts, code):
    """Process 1 decides; process 0 hangs unless all is well, and is stopped each time."""
    place.stub("python", exits({0: [0 if one == 0 else -1 for one in codes], 1: codes}))
    begin = time.monotonic()
    assert place.launch("local.sh", *flags).returncode == code
    assert len(place.calls("python")) == 2 * starts
    assert time.monotonic() - begin < 15


def test_local_kills_what_does_not_stop(place):
    place.stub(
        "python",
        "import sys\nif '--process=0' in arguments:\n    time.sleep(1)\n    sys.exit(7)\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint('still here', flush=True)\ntime.sleep(30)",
    )
    begin = time.monotonic()
    done = place.launch("local.sh", "--grace=1")
    assert done.returncode == 7
    assert done.stdout == "[1] still here\n"
    assert time.monotonic() - begin < 15


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_local_passes_signals_on(place, number):
    """All processes get SIGTERM and save; who stops the launcher does not want it to start again."""
    place.stub(
        "python",
        f"signal.signal(signal.SIGTERM, lambda *_: (print('saved', flush=True), os._exit({PREEMPTED})))\n"
        "print('ready', flush=True)\ntime.sleep(30)",
    )
    command = [ROOT / "launch" / "local.sh", "--processes=2", "--", *PLAIN]
    process = subprocess.Popen(
        command, env=place.env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # tests in the background have it ignored, for good
    )  # fmt: skip
    assert {process.stdout.readline() for _ in range(2)} == {"[0] ready\n", "[1] ready\n"}
    process.send_signal(number)
    output, _ = process.communicate(timeout=15)
    assert sorted(output.splitlines()) == ["[0] saved", "[1] saved"]
    assert process.returncode == {signal.SIGTERM: PREEMPTED, signal.SIGINT: INTERRUPTED}[number]
    assert len(place.calls("python")) == 2


def test_local_with_bad_input_for_real(place):
    place.stub("python", f"os.execv({sys.executable!r}, [{sys.executable!r}, *arguments])")
    done = place.launch("local.sh", arguments=["--config=configs/chese.py"])
    assert done.returncode == 2
    lines = done.stdout.splitlines()
    assert lines
    assert all(re.fullmatch(r"\[[01]\] msmjax: .*configs/chese.py.*", line) for line in lines)


# slurm.sh


def sbatch_options(text):
    assert text.startswith("#!/bin/bash\n#SBATCH ")
    return dict(re.fullmatch(r"#SBATCH --([a-z-]+)(?:=(.*))?", line).groups() for line in text.splitlines() if "#SBATCH" in line)


def test_sbatch_options(place):
    common = {
        "job-name": "msmjax", "nodes": "2", "cpus-per-task": "8", "time": "1-12:00:00", "output": "%x-%j.log",
        "open-mode": "append", "requeue": None, "signal": "TERM@120",
    }  # fmt: skip
    # A process for each GPU: JAX takes one each under SLURM.
    assert sbatch_options(place.render("slurm.sh")) == common | {"ntasks-per-node": "4", "gpus-per-node": "4"}
    flags = ["--gpus-per-node=0", "--partition=long", "--name=x", "--cpus-per-task=3", "--grace=300", "--sbatch=--account=me"]
    changed = {"ntasks-per-node": "1", "partition": "long", "job-name": "x", "cpus-per-task": "3", "signal": "TERM@300"}
    assert sbatch_options(place.render("slurm.sh", *flags)) == common | changed | {"account": "me"}


def test_slurm_submits_what_its_dry_run_prints(place):
    text = place.render("slurm.sh", arguments=ODD)
    place.stub("sbatch", "(here / 'submitted').write_text(sys.stdin.read())")
    assert place.launch("slurm.sh", arguments=ODD).returncode == 0
    assert (place.path / "submitted").read_text() == text
    assert place.calls() == [["sbatch"]]


def srun(place):
    """srun, that runs its command here."""
    place.stub("srun", "at = next(i for i, a in enumerate(arguments) if a[:2] != '--')\nos.execvp(arguments[at], arguments[at:])")
    place.stub("scontrol", "")


@pytest.mark.parametrize(
    ("code", "restarts", "requeued"),
    [
        (0, 0, False),
        (2, 0, False),
        (130, 0, False),
        (PREEMPTED, 0, True),
        (PREEMPTED, 2, True),
        (PREEMPTED, 3, False),
        (1, 0, True),
        (137, 3, False),
    ],
)
def test_slurm_goes_back_into_the_queue(place, code, restarts, requeued):
    text = place.render("slurm.sh", "--retries=3", arguments=ODD)
    srun(place)
    place.python_exits(code)
    env = {"SLURM_JOB_ID": "17", "SLURM_CPUS_PER_TASK": "8"} | ({"SLURM_RESTART_COUNT": str(restarts)} if restarts else {})
    assert place.run("bash", input=text, env=env).returncode == code
    assert place.calls("srun")[0][1:4] == ["--cpus-per-task=8", "--kill-on-bad-exit=0", "--wait=300"]
    assert place.calls("python") == [["python", "-u", "-m", "msmjax.main", "--distributed", *ODD]]
    assert place.calls("scontrol") == ([["scontrol", "requeue", "17"]] if requeued else [])


# tpu_vm.sh

WHERE = ["--zone=us-east5-b", "--quiet"]
REQUEST = ["gcloud", "compute", "tpus", "queued-resources"]
DELETE = [*REQUEST, "delete", "cheese", "--force", *WHERE]


def cloud(place, *codes):
    """gcloud, with one TPU that is there once it was asked for, waited for, and not lost: code 255 of a run is a lost TPU."""
    place.stub("sleep", "")
    place.stub("pkill", "sys.exit(1)")
    place.python_exits(*codes)
    (place.path / "msmjax").mkdir()
    (place.path / "venv" / "bin").mkdir(parents=True)
    (place.path / "venv" / "bin" / "python").symlink_to(place.bin / "python")
    place.stub(
        "gcloud",
        "state, verb, command = here / 'state', arguments[3], arguments[-1].removeprefix('--command=')\n"
        "if verb == 'create': state.write_text('WAITING_FOR_RESOURCES')\n"
        "if verb == 'delete': state.unlink()\n"
        "if verb == 'scp': (here / 'msmjax.tar.gz').write_bytes(Path(arguments[4]).read_bytes())\n"
        "if verb == 'describe':\n"
        "    if not state.exists(): sys.exit('NOT_FOUND')\n"
        "    print(state.read_text())\n"
        "    if state.read_text() == 'WAITING_FOR_RESOURCES': state.write_text('ACTIVE')\n"
        "if verb == 'ssh' and '--distributed' in command:\n"
        "    code = subprocess.run(['bash', '-c', command]).returncode\n"
        "    if code == 255: state.write_text('SUSPENDED')\n"
        "    sys.exit(code)",
    )


def steps(place):
    return [call[4] for call in place.calls("gcloud") if call[4] != "describe"]


def test_tpu_vm_runs_what_its_dry_run_prints(place):
    flags = ["--spot", "--project=me", "--setup=mount it"]
    text = place.render("tpu_vm.sh", *flags, arguments=ODD)
    cloud(place, 0, 0)
    assert place.run("bash", "-c", text).returncode == 0
    printed = [call for call in place.calls("gcloud") if "describe" not in call]
    place.log.unlink()
    assert place.launch("tpu_vm.sh", *flags, arguments=ODD).returncode == 0
    assert [call for call in place.calls("gcloud") if "describe" not in call] == printed
    create, copy, install, start, delete = printed
    where = ["--zone=us-east5-b", "--project=me", "--quiet"]
    kind = ["--node-id=cheese", "--accelerator-type=v6e-16", "--runtime-version=v2-alpha-tpuv6e", "--spot"]
    assert create == [*REQUEST, "create", "cheese", *kind, *where]
    assert delete == [*REQUEST, "delete", "cheese", "--force", *where]
    # Every worker, each time: with one missing, the others wait for it.
    for call in (copy, install, start):
        assert "--worker=all" in call
    command = install[-1].removeprefix("--command=").splitlines()
    assert command[:2] == ["set -e", "mount it"]
    assert command[-1] == "~/.local/bin/uv pip install --quiet --python=$HOME/venv -e ~/msmjax 'jax[tpu]'"
    shellcheck("--severity=warning", "--shell=bash", "-", text=install[-1].removeprefix("--command="))
    shellcheck("--severity=warning", "--shell=bash", "-", text=start[-1].removeprefix("--command="))
    with tarfile.open(place.path / "msmjax.tar.gz") as file:
        assert {"setup.py", "msmjax/main.py", "configs/cheese.py"} <= set(file.getnames())
    assert not (place.path / "msmjax-cheese.tar.gz").exists()


def test_tpu_vm_quotes_arguments_and_stops_what_still_runs(place):
    cloud(place, 0)
    assert place.launch("tpu_vm.sh", arguments=ODD).returncode == 0
    assert place.calls("python") == [["python", "-u", "-m", "msmjax.main", "--distributed", *ODD]]
    term, kill = place.calls("pkill")
    assert (term[1], kill[1]) == ("-f", "-KILL")
    command = place.calls("gcloud")[-2][-1].removeprefix("--command=")
    for pattern in (term[-1], kill[-1]):
        assert re.search(pattern, "/home/me/venv/bin/python -u -m msmjax.main --distributed")
        assert not re.search(pattern, f"bash -c {command}"), "pkill would end the shell that calls it"


@pytest.mark.parametrize(
    ("codes", "flags", "expected", "code"),
    [
        ([PREEMPTED, PREEMPTED, 0], [], ["create", *["scp", "ssh", "ssh"] * 3, "delete"], 0),
        ([255, 0], [], ["create", "scp", "ssh", "ssh", "delete", "create", "scp", "ssh", "ssh", "delete"], 0),
        ([2], [], ["create", "scp", "ssh", "ssh", "delete"], 2),
        ([130], [], ["create", "scp", "ssh", "ssh", "delete"], 130),
        ([1, 1, 1], ["--retries=2"], ["create", *["scp", "ssh", "ssh"] * 3, "delete"], 1),
        ([0], ["--keep"], ["create", "scp", "ssh", "ssh"], 0),
    ],
)
def test_tpu_vm_starts_again(place, codes, flags, expected, code):
    cloud(place, *codes)
    done = place.launch("tpu_vm.sh", *flags)
    assert done.returncode == code
    assert steps(place) == expected
    assert json.loads((place.path / "codes").read_text()) == []
    if "--keep" in flags:
        assert "costs" in done.stderr
    else:
        assert place.calls("gcloud")[-1] == DELETE


def test_tpu_vm_gives_up_where_there_is_no_tpu(place):
    cloud(place)
    place.stub("gcloud", "sys.exit(1)")
    done = place.launch("tpu_vm.sh", "--retries=1")
    assert done.returncode == 1
    assert steps(place) == ["create", "create", "delete"]
    assert "could not be deleted" in done.stderr


def test_tpu_vm_installs_a_ref(place):
    """From `origin` of the checkout that the script is part of; nothing is copied."""
    checkout = place.path / "checkout"
    shutil.copytree(ROOT / "launch", checkout / "launch")
    script = [checkout / "launch" / "tpu_vm.sh", *GOOD["tpu_vm.sh"], "--ref=v1 beta", "--dry-run", "--", *PLAIN]
    place.run("git", "init", "--quiet", checkout)
    done = place.run(*script)
    assert (done.returncode, done.stderr) == (2, "tpu_vm.sh: --ref=v1 beta: this checkout has no remote origin\n")
    place.run("git", "-C", checkout, "remote", "add", "origin", "https://host/me/msmjax.git")
    cloud(place, 0)
    assert place.run("bash", "-c", place.run(*script).stdout).returncode == 0
    assert steps(place) == ["create", "ssh", "ssh", "delete"]
    install = place.calls("gcloud")[2][-1]
    assert "\ngit clone --quiet https://host/me/msmjax.git msmjax\ngit -C msmjax checkout --quiet 'v1 beta'\n" in install


# gke_jobset.sh


def jobset(place, *flags, arguments=PLAIN):
    return yaml.safe_load(place.render("gke_jobset.sh", *flags, arguments=arguments))


def test_jobset(place):
    job = {
        "parallelism": 4,
        "completions": 4,
        "completionMode": "Indexed",
        "backoffLimit": 0,
        "podFailurePolicy": {
            "rules": [{"action": "FailJob", "onExitCodes": {"containerName": "msmjax", "operator": "In", "values": [2, 3, 130]}}]
        },
        "template": {
            "spec": {
                "restartPolicy": "Never",
                "terminationGracePeriodSeconds": 120,
                "nodeSelector": {
                    "cloud.google.com/gke-tpu-accelerator": "tpu-v6e-slice",
                    "cloud.google.com/gke-tpu-topology": "4x4",
                },
                "containers": [
                    {
                        "name": "msmjax",
                        "image": "host/me/msmjax:1",
                        "command": ["python", "-u", "-m", "msmjax.main", "--distributed", *PLAIN],
                        "resources": {"requests": {"google.com/tpu": 4}, "limits": {"google.com/tpu": 4}},
                        "volumeMounts": [{"name": "shared", "mountPath": "/shared"}],
                    }
                ],
                "volumes": [{"name": "shared", "persistentVolumeClaim": {"claimName": "disk"}}],
            }
        },
    }
    assert jobset(place) == {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {"name": "cheese"},
        "spec": {
            # Exit code 2 fails the Job for reason PodFailurePolicy, and with it the JobSet. Any other end of a pod, 75 and
            # disruptions among them, matches no rule, fails the Job by its backoffLimit, and restarts the JobSet.
            "failurePolicy": {
                "maxRestarts": 10,
                "rules": [{"name": "badInput", "action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}],
            },
            "replicatedJobs": [{"name": "worker", "replicas": 1, "template": {"spec": job}}],
        },
    }


@pytest.mark.parametrize(
    ("topology", "chips", "hosts"), [("2x2", 4, 1), ("4x4", 4, 4), ("2x4", 8, 1), ("2x4", 4, 2), ("2x2x4", 4, 4)]
)
def test_jobset_has_a_pod_for_each_host(place, topology, chips, hosts):
    (replicated,) = jobset(place, f"--topology={topology}", f"--chips-per-host={chips}")["spec"]["replicatedJobs"]
    spec = replicated["template"]["spec"]
    assert spec["parallelism"] == spec["completions"] == hosts
    assert spec["template"]["spec"]["containers"][0]["resources"]["limits"]["google.com/tpu"] == chips
    assert spec["template"]["spec"]["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == topology


def test_jobset_on_spot_nodes(place):
    manifest = jobset(place, "--spot", "--grace=25", "--retries=50")
    pod = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    assert pod["nodeSelector"]["cloud.google.com/gke-spot"] == "true"
    assert pod["tolerations"] == [
        {"key": "cloud.google.com/gke-spot", "operator": "Equal", "value": "true", "effect": "NoSchedule"}
    ]
    assert pod["terminationGracePeriodSeconds"] == 25
    assert manifest["spec"]["failurePolicy"]["maxRestarts"] == 50


def test_jobset_keeps_arguments(place):
    """As Kubernetes reads a command: $$ is $, $(NAME) is a variable, everything else stays."""
    pod = jobset(place, arguments=ODD)["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    expand = lambda word: re.sub(r"\$(\$|\(\w+\))", lambda match: "$" if match[1] == "$" else "REPLACED", word)  # noqa: E731
    place.stub("python", "")
    assert place.run(*map(expand, pod["containers"][0]["command"])).returncode == 0
    assert place.calls() == [["python", "-u", "-m", "msmjax.main", "--distributed", *ODD]]


def test_gke_creates_what_its_dry_run_prints(place):
    text = place.render("gke_jobset.sh", arguments=ODD)
    place.stub("kubectl", "(here / 'created').write_text(sys.stdin.read())")
    assert place.launch("gke_jobset.sh", arguments=ODD).returncode == 0
    assert (place.path / "created").read_text() == text
    assert place.calls() == [["kubectl", "create", "-f", "-"]]
