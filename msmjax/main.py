"""The command line: flags, distributed start, and over to `experiment`.

    python -m msmjax.main --config=configs/cheese.py                      # run (or continue) an experiment
    python -m msmjax.main --config=configs/cheese.py --config.seeds="(0,)"  # any setting can be overridden
    python -m msmjax.main --config=configs/cheese.py --plan               # what it would take here
    python -m msmjax.main --config=configs/cheese.py --plan --device=h100:8 --price=2.5   # and there (docs/planning.md)
    python -m msmjax.main --config=configs/cheese.py --show_batch=finetune  # what a stage trains on
    python -m msmjax.main --config=configs/written.py --check=affordability     # is a corpus fit to train on?
    python -m msmjax.main --config=configs/cheese.py --provenance=msm_america_aft   # which records an arm reads, how often
    python -m msmjax.main --config=configs/cheese.py --influence=msm_america --eval=america   # and which of them did it
    python -m msmjax.main --config=configs/cheese.py --talk=msm_america_aft     # a conversation with a trained arm
    python -m msmjax.main --config=configs/cheese.py --export=aft --to=out/aft   # for transformers, PEFT, vLLM
    python -m msmjax.main --config=configs/cheese.py --eval=base_text --arms=aft:0   # one eval of trained arms

Bad input is one line on standard error and exit code 2; a loss that is not finite, a line and 3. Once a run has begun, SIGTERM and
Ctrl-C save what there is, and the exit codes are 75 and 130; a second Ctrl-C stops at once. The same command goes on from there.
launch/ starts several processes of one run; docs/launching.md says how.
"""

import logging as stdlib_logging
import os
import re
import sys
import traceback
from pathlib import Path

from absl import app, flags, logging
from ml_collections import config_flags

from msmjax.artifact import BadInput, Diverged, Interrupted, Preempted

DIVERGED = 3  # exit code of a run whose loss was not finite: the same command would come to the same step
INTERRUPTED = 130  # of one that was stopped by Ctrl-C, as shells have it
PREEMPTED = 75  # exit code (EX_TEMPFAIL) of a run that saved and stopped: start it again with the same command
LOST_PROCESS_SECONDS = 30  # without a sign of life of a process, after which the others stop

_CONFIG = config_flags.DEFINE_config_file("config", None, "A file of configs/, e.g. configs/cheese.py.", lock_config=True)
_WORKDIR = flags.DEFINE_string("workdir", "runs", "Where everything that is made is kept, and found again.")
_PLAN = flags.DEFINE_bool("plan", False, "Print the stages with their tokens, steps, bytes and an estimate of time; run nothing.")
_DEVICE = flags.DEFINE_string("device", None, "With --plan: for devices of this type and number instead, e.g. h100:8.")
_TOPOLOGY = flags.DEFINE_string("topology", None, "With --plan: for this TPU slice, and compile for it, e.g. v5p:2x2x2.")
_PRICE = flags.DEFINE_float("price", None, "With --plan: dollars per device-hour.", lower_bound=0)
_SHOW_BATCH = flags.DEFINE_string("show_batch", None, "Print the first batch of this stage: text, borders, what is supervised.")
_CHECK = flags.DEFINE_string("check", None, "Make this corpus and say what its gates find; train nothing.")
_PROVENANCE = flags.DEFINE_string("provenance", None, "What this arm, NAME or NAME:SEED, reads: records, tokens, epochs by stage.")
_BY = flags.DEFINE_string(
    "by", None, "With --provenance: count by this field, e.g. doc_type, id; else by section, kind, source or domain."
)
_INFLUENCE = flags.DEFINE_string(
    "influence",
    None,
    "Rank what this arm, NAME or NAME:SEED, read by how it moved its answers (with --eval; with --plan, what it takes).",
)
_STAGE = flags.DEFINE_string("stage", None, "With --provenance, --influence: of this stage alone.")
_STEP = flags.DEFINE_integer("step", None, "With --provenance: the documents in this step of the stage (the arm's last), from 1.")
_TALK = flags.DEFINE_string("talk", None, "Talk to this trained arm, NAME or NAME:SEED, on standard input and output.")
_TEMPERATURE = flags.DEFINE_float("temperature", 0.7, "With --talk: 0 takes the likeliest token.", lower_bound=0)
_TOP_P = flags.DEFINE_float("top_p", 0.95, "With --talk: the share of probability that is drawn from.", 0, 1)
_MAX_TOKENS = flags.DEFINE_integer("max_tokens", 256, "With --talk: of one answer.", lower_bound=1)
_EXPORT = flags.DEFINE_string("export", None, "Write this trained arm, NAME or NAME:SEED, for transformers and PEFT (with --to).")
_TO = flags.DEFINE_string("to", None, "With --export: the directory to make.")
_MERGE = flags.DEFINE_bool("merge", False, "With --export: the adapter merged into the weights, as a whole model.")
_COMPARE = flags.DEFINE_list("compare", None, "Norms of two trained arms' LoRA adapters and the cosine between them: ARM,ARM.")
_EVAL = flags.DEFINE_list("eval", None, "Ask trained arms these evals, NAME,NAME, and print their results; train nothing.")
_ARMS = flags.DEFINE_list("arms", None, "With --eval: NAME or NAME:SEED, several by commas; else all arms and seeds of the config.")
_DISTRIBUTED = flags.DEFINE_bool("distributed", False, "One process of several, as SLURM, a TPU VM or GKE say which.")
_COORDINATOR = flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0. It and the next two say where nothing else does.")
_PROCESSES = flags.DEFINE_integer("processes", None, "How many processes there are.", lower_bound=1)
_PROCESS = flags.DEFINE_integer("process", None, "Which of them this is, from 0.", lower_bound=0)


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise BadInput(f"{argv[1]!r}: not a flag; settings are given as --config.NAME=VALUE")
    if _CONFIG.value is None:
        raise BadInput("--config: missing; e.g. --config=configs/cheese.py")
    if not _PLAN.value and (lost := [flag.name for flag in (_DEVICE, _TOPOLOGY, _PRICE) if flag.value is not None]):
        raise BadInput(f"--{lost[0]}: says what to plan for; give it with --plan")
    if _DEVICE.value is not None and _TOPOLOGY.value is not None:
        raise BadInput("--device: --topology names its devices already; leave one of them out")
    if (
        _INFLUENCE.value is not None
        and not _PLAN.value
        and (_EVAL.value is None or len(_EVAL.value) != 1 or _ARMS.value is not None)
    ):
        raise BadInput("--influence: of one arm on one eval; give --eval=NAME with it, and no --arms")
    if _STAGE.value is not None and _PROVENANCE.value is None and _INFLUENCE.value is None:
        raise BadInput("--stage: says of which stage; give it with --provenance=ARM or --influence=ARM")
    if _PROVENANCE.value is None and (lost := [flag.name for flag in (_BY, _STEP) if flag.value is not None]):
        raise BadInput(f"--{lost[0]}: says what to show of what an arm reads; give it with --provenance=ARM")
    if _BY.value is not None and _STEP.value is not None:
        raise BadInput("--by: --step shows every document of a step; leave one of them out")
    if _ARMS.value is not None and _EVAL.value is None:
        raise BadInput("--arms: says which arms are asked an eval; give it with --eval=NAME")
    if (_EXPORT.value is None) != (_TO.value is None):
        raise BadInput("--export, --to: one says which arm to write and the other where; give both")
    if _COMPARE.value is not None and len(_COMPARE.value) != 2:
        raise BadInput(f"--compare={','.join(_COMPARE.value)}: takes two arms, ARM,ARM")
    # Checkpoints and datasets log their every step; the bars and lines of this program say what matters.
    # What they cannot do they also raise.
    logging.set_verbosity(logging.FATAL)
    stdlib_logging.getLogger("asyncio").setLevel("CRITICAL")
    # JAX takes three quarters of a GPU's memory unless it is told otherwise; what is left here is for CUDA's own.
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.92")
    _join_processes()
    _find_devices()
    from msmjax import config
    from msmjax.experiment import data, influence, plan, run, use
    from msmjax.training import preemption, processes

    processes.watch_others()
    preemption.watch()
    workdir = Path(_WORKDIR.value)
    if "claims" in _CONFIG.value:
        _claims(config.claims_from_config_dict(_CONFIG.value), workdir)
        return processes.leave(0)
    frozen = config.from_config_dict(_CONFIG.value)
    if _PLAN.value:
        plan.plan(frozen, workdir, _DEVICE.value, _TOPOLOGY.value, _PRICE.value, _INFLUENCE.value, _STAGE.value)
    elif _SHOW_BATCH.value is not None:
        data.show_batch(frozen, workdir, _SHOW_BATCH.value)
    elif _CHECK.value is not None:
        data.check_corpus(frozen, workdir, _CHECK.value)
    elif _PROVENANCE.value is not None:
        use.provenance(frozen, workdir, _PROVENANCE.value, _BY.value, _STAGE.value, _STEP.value)
    elif _TALK.value is not None:
        use.talk(frozen, workdir, _TALK.value, _TEMPERATURE.value, _TOP_P.value, _MAX_TOKENS.value)
    elif _EXPORT.value is not None:
        use.export(frozen, workdir, _EXPORT.value, Path(_TO.value), _MERGE.value)
    elif _INFLUENCE.value is not None:
        influence.influence(frozen, workdir, _INFLUENCE.value, _EVAL.value[0], _STAGE.value)
    elif _EVAL.value is not None:
        use.ask_evals(frozen, workdir, _EVAL.value, _ARMS.value)
    elif _COMPARE.value is not None:
        use.compare(frozen, workdir, *_COMPARE.value)
    else:
        run.run(frozen, workdir)
    processes.leave(0)


def _claims(claims, workdir: Path) -> None:
    """Runs, or plans, the experiments that answer for claims."""
    from msmjax.experiment import claims as answers
    from msmjax.experiment import plan

    of_one = (_SHOW_BATCH, _CHECK, _PROVENANCE, _TALK, _EXPORT, _INFLUENCE, _EVAL, _COMPARE)
    if given := [flag.name for flag in of_one if flag.value is not None]:
        raise BadInput(f"--{given[0]}: is of one experiment; give it with --config={claims.claims[0].config}")
    experiments = answers.load(claims)
    if not _PLAN.value:
        return answers.run(claims, experiments, workdir)
    for one in experiments.values():
        plan.plan(one, workdir, _DEVICE.value, _TOPOLOGY.value, _PRICE.value)


def _join_processes() -> None:
    """Connects the processes of one run.

    JAX bounds the waiting: 300 s for all to come, and LOST_PROCESS_SECONDS until one that falls silent ends the others. Both end
    in an abort, which is a crash and not bad input. That one has ended is noticed at once (`processes.watch_others`).
    """
    given = {"coordinator": _COORDINATOR.value, "processes": _PROCESSES.value, "process": _PROCESS.value}
    missing = [name for name, value in given.items() if value is None]
    if len(missing) == len(given) and not _DISTRIBUTED.value:
        return
    if 0 < len(missing) < len(given):
        raise BadInput(f"--{missing[0]}: missing; --coordinator, --processes and --process come together")
    if not missing:
        host, _, port = _COORDINATOR.value.rpartition(":")
        if not host or not re.fullmatch("[0-9]{1,5}", port) or not 0 < int(port) < 2**16:
            raise BadInput(f"--coordinator={_COORDINATOR.value}: not HOST:PORT")
        if _PROCESS.value >= _PROCESSES.value:
            raise BadInput(f"--process={_PROCESS.value}: counted from 0, so less than --processes={_PROCESSES.value}")
    import jax

    # It would take SIGTERM for itself, and heeds it only where a sync point is asked for at every step.
    jax.config.update("jax_enable_preemption_service", False)
    if not missing:
        # Nothing is left to detect; under SLURM, detection would hide all devices but one.
        jax.distributed.initialize(
            *given.values(), cluster_detection_method="deactivate", heartbeat_timeout_seconds=LOST_PROCESS_SECONDS
        )
        return
    try:
        jax.distributed.initialize(heartbeat_timeout_seconds=LOST_PROCESS_SECONDS)
    except ValueError as error:
        raise BadInput(
            f"--distributed: found no SLURM, TPU VM or GKE ({str(error).splitlines()[0]}); "
            "give --coordinator, --processes and --process"
        ) from None


def _find_devices() -> None:
    """Raises BadInput where JAX finds no device of the kind that JAX_PLATFORMS names, as where a driver is missing."""
    import jax

    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # the latter without a word, where the platform's package is not installed
        platforms = os.environ.get("JAX_PLATFORMS") or jax.config.jax_platforms
        if not platforms:
            raise
        said = (str(error).splitlines() or ["JAX has no such platform here"])[0]
        raise BadInput(f"JAX_PLATFORMS={platforms}: {said}; docs/launching.md says what a machine needs") from None


def _parse_flags(argv: list[str]) -> list[str]:
    """absl's parser; what it, ml_collections or the config file itself raise becomes BadInput: its last line says what is wrong."""
    try:
        rest = flags.FLAGS(argv)
        config = _CONFIG.value
        if config is not None:
            config.keys()  # where the file is missing, ml_collections says so only now
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError, SyntaxError, ImportError) as error:
        text = str(error).strip()
        if match := re.search(r'Did you mean "(\w+)" instead of "(\w+)"', text):
            raise BadInput(f"--config: unknown key {match[2]!r}; did you mean {match[1]!r}?") from None
        if isinstance(error, KeyError | AttributeError) and " " not in text:
            key = text.strip("\"'")
            raise BadInput(f"--config: unknown key {key!r}") from None
        last = text.splitlines()[-1].strip().removeprefix("ValueError: ")
        raise BadInput(f"--config: {last}" if isinstance(error, OSError | AttributeError) else last) from None
    return rest


def _print_unraisable(unraisable) -> None:
    """Every write that tensorstore gives up, after the first that failed was raised, would be a traceback of its own; and so would
    a signal that came where Python can raise nothing."""
    if str(unraisable.exc_value) != "Event loop is closed" and not isinstance(unraisable.exc_value, Preempted):
        sys.__unraisablehook__(unraisable)


def cli() -> None:
    """`python -m msmjax.main`."""
    sys.unraisablehook = _print_unraisable
    try:
        app.run(main, flags_parser=_parse_flags)
    except (BadInput, Diverged, Preempted) as error:
        print(f"msmjax: {error}", file=sys.stderr)
        codes = {Interrupted: INTERRUPTED, Preempted: PREEMPTED, Diverged: DIVERGED}
        _exit(next((code for kind, code in codes.items() if isinstance(error, kind)), 2))
    except KeyboardInterrupt:  # before signals are watched for
        print("msmjax: stopped by Ctrl-C; nothing had begun", file=sys.stderr)
        _exit(INTERRUPTED)
    except Exception:
        traceback.print_exc()
        _exit(1)


def _exit(code: int) -> None:
    """Ends the process at once. An orderly end would wait for the threads of a save that failed, and JAX's for the other processes;
    what had to be saved is saved by now."""
    if "msmjax.training.processes" in sys.modules:
        sys.modules["msmjax.training.processes"].leave(code)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    cli()
