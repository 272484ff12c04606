#!/usr/bin/env bash
# A run on a Cloud TPU slice: asks for it, installs this checkout on all its workers, runs, and does so again after preemption.
#
#     launch/tpu_vm.sh --name=cheese --zone=us-east5-b --type=v6e-16 --version=v2-alpha-tpuv6e --spot \
#         --setup='sudo mkdir -p /shared && sudo mount 10.0.0.2:/share /shared' \
#         -- --config=configs/cheese.py --workdir=/shared/runs
#
# What comes after -- goes to msmjax.main as it is. --workdir must be on a file system that all workers share; --setup mounts it.
# Run this where it can stay for as long as the run does, e.g. in tmux on a small machine. When it ends, the TPU is deleted.
#
#     --name=NAME      name of the TPU and of the request for it (required)
#     --zone=ZONE      where (required)
#     --type=TYPE      accelerator type, e.g. v6e-16 (required)
#     --version=NAME   runtime version that fits the type, e.g. v2-alpha-tpuv6e (required)
#     --project=ID     the project (gcloud's default)
#     --spot           a spot TPU: cheaper, and taken away at any time
#     --setup=COMMAND  run on every worker before msmjax is installed
#     --ref=REF        install this branch, tag or commit of the remote `origin`, not the files of this checkout
#     --retries=N      how often to start again, after exit code 75, a lost TPU or a crash (10)
#     --keep           leave the TPU at the end; it costs until it is deleted
#     --dry-run        print every command in order, run nothing
set -euo pipefail

fail() {
  echo "tpu_vm.sh: $1" >&2
  exit 2
}

name='' zone='' type='' version='' project='' spot='' setup='' ref='' retries=10 keep=false dry_run=false
while (($#)); do
  case $1 in
    --name=*) name=${1#*=} ;;
    --zone=*) zone=${1#*=} ;;
    --type=*) type=${1#*=} ;;
    --version=*) version=${1#*=} ;;
    --project=*) project=${1#*=} ;;
    --spot) spot=--spot ;;
    --setup=*) setup=${1#*=} ;;
    --ref=*) ref=${1#*=} ;;
    --retries=*) retries=${1#*=} ;;
    --keep) keep=true ;;
    --dry-run) dry_run=true ;;
    --help) sed -n '2,/^set/s/^# \{0,1\}//p' "$0" && exit ;;
    --) shift && break ;;
    *) fail "$1: not a flag of mine, or without =VALUE; see --help (flags of msmjax.main come after --)" ;;
  esac
  shift
done
[[ $name =~ ^[a-z]([-a-z0-9]*[a-z0-9])?$ ]] || fail "--name=$name: not a name of lower-case letters, digits and '-'"
[[ $zone =~ ^[a-z0-9-]+$ ]] || fail "--zone=$zone: not a zone; e.g. us-east5-b"
[[ $type =~ ^[a-z0-9]+-[0-9]+$ ]] || fail "--type=$type: not an accelerator type; e.g. v6e-16"
[[ $version =~ ^[a-z0-9.-]+$ ]] || fail "--version=$version: not a runtime version; e.g. v2-alpha-tpuv6e"
[[ $project =~ ^[a-z0-9.:-]*$ ]] || fail "--project=$project: not a project id"
[[ $ref != -* ]] || fail "--ref=$ref: not a branch, tag or commit"
[[ $retries =~ ^[0-9]+$ ]] || fail "--retries=$retries: not a whole number"
(($#)) || fail "--: nothing after it; msmjax.main needs --config at least"
[[ " $*" == *" --workdir="/* ]] || fail "--workdir: needed after --, as a path that all workers share; their own disks are not and go with the TPU"

root=$(cd "$(dirname "$0")/.." && pwd)
# Readable, and safe in any shell: single quotes where they are needed.
quote() {
  local word separator=''
  for word in "$@"; do
    [[ $word =~ ^[A-Za-z0-9_@%+=:,./-]+$ ]] || word="'${word//\'/\'\\\'\'}'"
    printf '%s%s' "$separator" "$word"
    separator=' '
  done
}

where=("--zone=$zone" ${project:+"--project=$project"} --quiet)
packed=${TMPDIR:-/tmp}/msmjax-$name.tar.gz
# Everything but what git ignores, as it is now.
pack="git -C $(quote "$root") ls-files -z --cached --others --exclude-standard"
pack+=" | tar -czf $(quote "$packed") -C $(quote "$root") --null --files-from=-"
unpack=$'mkdir msmjax\ntar -xzf msmjax.tar.gz -C msmjax'
if [[ $ref ]]; then
  url=$(git -C "$root" remote get-url origin 2>/dev/null) || fail "--ref=$ref: this checkout has no remote origin"
  unpack="git clone --quiet $(quote "$url") msmjax"$'\n'"git -C msmjax checkout --quiet $(quote "$ref")"
fi
# The images' own Python is 3.10, too old for JAX; uv brings another.
install="set -e
${setup:-true}
cd
rm -rf msmjax
$unpack
python3 -m pip install --quiet --user uv
~/.local/bin/uv venv --quiet --clear --python=3.12 ~/venv
~/.local/bin/uv pip install --quiet --python=\$HOME/venv -e ~/msmjax 'jax[tpu]'"
# Where only the connection was lost, the run of the last start still goes on and holds the TPU: SIGTERM, and time to save.
last="'^[^ ]*python -u -m msmjax'"
start="pkill -f $last && sleep 60; pkill -KILL -f $last
cd ~/msmjax && ~/venv/bin/python -u -m msmjax.main --distributed $(quote "$@")"

# Runs a command, or prints it.
run() {
  if $dry_run; then
    quote "$@"
    echo
  else
    "$@"
  fi
}

# WAITING_FOR_RESOURCES, PROVISIONING, ACTIVE, ...; nothing where no such request is known.
state() {
  run gcloud compute tpus queued-resources describe "$name" "${where[@]}" '--format=value(state.state)' 2>/dev/null || true
}

create() {
  run gcloud compute tpus queued-resources create "$name" "--node-id=$name" "--accelerator-type=$type" \
    "--runtime-version=$version" ${spot:+"$spot"} "${where[@]}"
}

# --force deletes the TPU with the request for it.
delete() {
  run gcloud compute tpus queued-resources delete "$name" --force "${where[@]}"
}

# Waits for the TPU, asking for it where nobody has; in the queue it costs nothing. Fails where the request does.
acquire() {
  local asked=false
  while true; do
    case $(state) in
      ACTIVE) return ;;
      FAILED | SUSPENDED)
        if $asked; then return 1; fi
        delete || return # what preemption leaves; it keeps the name
        ;;
      '')
        if $asked; then return 1; fi
        create || return
        asked=true
        ;;
      *) sleep 30 ;;
    esac
  done
}

on_all_workers() {
  run gcloud compute tpus tpu-vm ssh "$name" "${where[@]}" --worker=all "--command=$1"
}

# Fails with the exit code of the first worker that failed.
install_and_start() {
  if [[ ! $ref ]]; then
    run bash -o pipefail -c "$pack" || return 1
    run gcloud compute tpus tpu-vm scp "$packed" "$name:msmjax.tar.gz" "${where[@]}" --worker=all || return 1
  fi
  on_all_workers "$install" || return 1
  on_all_workers "$start"
}

at_end() {
  rm -f "$packed"
  if $keep; then
    echo "tpu_vm.sh: $name is kept and costs; gcloud compute tpus queued-resources delete $name --force ${where[*]}" >&2
  elif ! delete; then
    echo "tpu_vm.sh: $name could not be deleted; if it is there, it costs" >&2
  fi
}

if $dry_run; then
  echo '# create, and ask until it is ACTIVE'
  create
  state
  echo '# install and run'
  install_and_start
  echo "# exit code 0, 2, 3 or 130: the end; else all of it again, up to $retries times, anew where the TPU is gone"
  if ! $keep; then delete; fi
  exit
fi
trap at_end EXIT
for ((again = 0; ; again++)); do
  code=1
  if acquire; then
    code=0
    install_and_start || code=$?
  fi
  # 2, 3: bad input or a loss that is not finite, the same again; 130: somebody's Ctrl-C. Else: preempted (75), TPU lost, or a crash.
  case $code in 0 | 2 | 3 | 130) exit "$code" ;; esac
  if ((again == retries)); then exit "$code"; fi
  echo "tpu_vm.sh: exit code $code; starting again ($((again + 1)) of $retries)" >&2
  sleep 60 # until the state of a TPU that was taken away says so
done
