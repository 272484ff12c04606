#!/usr/bin/env bash
# A run on SLURM: renders a batch script and submits it. Run it where the run shall start, in the environment it shall have.
#
#     launch/slurm.sh --nodes=2 --gpus-per-node=8 --time=24:00:00 -- --config=configs/cheese.py --workdir=/shared/runs
#
# What comes after -- goes to msmjax.main as it is. --workdir must be on a file system that all nodes share.
# Before the time is up the processes get SIGTERM and save; the job then goes back into the queue and continues.
#
#     --nodes=N           how many (required)
#     --gpus-per-node=N   GPUs of each node, 0 for CPU only (required)
#     --time=TIME         limit of one stay on the nodes, as sbatch takes it (required)
#     --partition=NAME    the partition (the cluster's default)
#     --name=NAME         name of the job (msmjax)
#     --cpus-per-task=N   CPUs of each process; SLURM alone would give one (8)
#     --grace=SECONDS     time to save between SIGTERM and the end (120)
#     --retries=N         how often the job may start again, after exit code 75 (preempted) or a crash (10)
#     --sbatch=OPTION     any other option of sbatch, e.g. --sbatch=--account=me; may be repeated
#     --dry-run           print the batch script, submit nothing
set -euo pipefail

fail() {
  echo "slurm.sh: $1" >&2
  exit 2
}

nodes='' gpus='' time='' partition='' name=msmjax cpus=8 grace=120 retries=10 options='' dry_run=false
while (($#)); do
  case $1 in
    --nodes=*) nodes=${1#*=} ;;
    --gpus-per-node=*) gpus=${1#*=} ;;
    --time=*) time=${1#*=} ;;
    --partition=*) partition=${1#*=} ;;
    --name=*) name=${1#*=} ;;
    --cpus-per-task=*) cpus=${1#*=} ;;
    --grace=*) grace=${1#*=} ;;
    --retries=*) retries=${1#*=} ;;
    --sbatch=*)
      [[ ${1#*=} == --* && ${1#*=} != *$'\n'* ]] || fail "$1: not an option of sbatch; e.g. --sbatch=--account=me"
      options+="#SBATCH ${1#*=}"$'\n'
      ;;
    --dry-run) dry_run=true ;;
    --help) sed -n '2,/^set/s/^# \{0,1\}//p' "$0" && exit ;;
    --) shift && break ;;
    *) fail "$1: not a flag of mine, or without =VALUE; see --help (flags of msmjax.main come after --)" ;;
  esac
  shift
done
[[ $nodes =~ ^[1-9][0-9]*$ ]] || fail "--nodes=$nodes: not a whole number from 1"
[[ $gpus =~ ^[0-9]+$ ]] || fail "--gpus-per-node=$gpus: not a whole number"
[[ $time =~ ^[0-9]+([-:][0-9]+){0,3}$ ]] || fail "--time=$time: not a time limit; e.g. 24:00:00"
[[ $partition =~ ^[A-Za-z0-9_.,-]*$ ]] || fail "--partition=$partition: not a name"
[[ $name =~ ^[A-Za-z0-9_.-]+$ ]] || fail "--name=$name: not a name of letters, digits, '_', '.' and '-'"
[[ $cpus =~ ^[1-9][0-9]*$ ]] || fail "--cpus-per-task=$cpus: not a whole number from 1"
[[ $grace =~ ^[1-9][0-9]*$ ]] || fail "--grace=$grace: not a whole number from 1"
[[ $retries =~ ^[0-9]+$ ]] || fail "--retries=$retries: not a whole number"
(($#)) || fail "--: nothing after it; msmjax.main needs --config at least"
[[ ! $partition ]] || options="#SBATCH --partition=$partition"$'\n'$options
# JAX takes one GPU per process under SLURM, whatever else the node has.
tasks=1
if ((gpus)); then
  tasks=$gpus
  # Not --gpus-per-task: it hides the other GPUs from each process, and JAX then looks for its own by the wrong number.
  options="#SBATCH --gpus-per-node=$gpus"$'\n'$options
fi

render() {
  cat <<END
#!/bin/bash
#SBATCH --job-name=$name
#SBATCH --nodes=$nodes
#SBATCH --ntasks-per-node=$tasks
#SBATCH --cpus-per-task=$cpus
#SBATCH --time=$time
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=TERM@$grace
${options}set -euo pipefail
retries=$retries
set -- python -u -m msmjax.main --distributed$(printf ' %q' "$@")
END
  cat <<'END'
# --signal without B: reaches the processes, not this shell; it only waits for them. It has no trap either, so that scancel
# ends it before it could go back into the queue. --kill-on-bad-exit=0: the first process that has saved must not
# cost the others theirs; --wait bounds how long they may stay after it. srun passes the highest exit code on.
code=0
srun --cpus-per-task="$SLURM_CPUS_PER_TASK" --kill-on-bad-exit=0 --wait=300 "$@" || code=$?
case $code in
  0 | 2 | 3 | 130) ;; # finished; bad input or a loss that is not finite: the same again; or somebody's Ctrl-C
  *)
    starts=${SLURM_RESTART_COUNT:-0}
    if ((starts < retries)); then
      echo "exit code $code; back into the queue ($((starts + 1)) of $retries)"
      scontrol requeue "$SLURM_JOB_ID"
    fi
    ;;
esac
exit "$code"
END
}

if $dry_run; then render "$@"; else render "$@" | sbatch; fi
