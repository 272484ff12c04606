#!/usr/bin/env bash
# Several processes of one run on the CPUs of this machine.
#
#     launch/local.sh --processes=2 -- --config=configs/cheese.py:tiny
#
# What comes after -- goes to every msmjax.main as it is. Lines are printed with the number of the process before them.
# If one process fails, the others get SIGTERM, then SIGKILL, and its exit code is passed on. SIGTERM or Ctrl-C here is
# SIGTERM for all. One process drives all GPUs of a machine by itself; that needs no launcher.
#
#     --processes=N            how many (2)
#     --devices-per-process=N  CPU devices of each (1)
#     --grace=SECONDS          time to save between SIGTERM and SIGKILL (60)
#     --retries=N              how often to start again after exit code 75, preempted (3)
#     --dry-run                print what would run, run nothing
set -euo pipefail

fail() {
  echo "local.sh: $1" >&2
  exit 2
}

processes=2 devices=1 grace=60 retries=3 dry_run=false
while (($#)); do
  case $1 in
    --processes=*) processes=${1#*=} ;;
    --devices-per-process=*) devices=${1#*=} ;;
    --grace=*) grace=${1#*=} ;;
    --retries=*) retries=${1#*=} ;;
    --dry-run) dry_run=true ;;
    --help) sed -n '2,/^set/s/^# \{0,1\}//p' "$0" && exit ;;
    --) shift && break ;;
    *) fail "$1: not a flag of mine, or without =VALUE; see --help (flags of msmjax.main come after --)" ;;
  esac
  shift
done
[[ $processes =~ ^[1-9][0-9]*$ ]] || fail "--processes=$processes: not a whole number from 1"
[[ $devices =~ ^[1-9][0-9]*$ ]] || fail "--devices-per-process=$devices: not a whole number from 1"
[[ $grace =~ ^[1-9][0-9]*$ ]] || fail "--grace=$grace: not a whole number from 1"
[[ $retries =~ ^[0-9]+$ ]] || fail "--retries=$retries: not a whole number"
(($#)) || fail "--: nothing after it; msmjax.main needs --config at least"

# Below the range from which Linux hands out ports by itself. A port nobody listens on refuses the connection.
free_port() {
  port=$((RANDOM % 10000 + 20000))
  while (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; do port=$((port + 1)); done
}

# Process $1 of the run; sets `command`. The coordinator would listen on every address, for anybody; here it need not.
command_of() {
  local process=$1
  shift
  command=(env JAX_PLATFORMS=cpu "JAX_NUM_CPU_DEVICES=$devices" "JAX_COORDINATOR_BIND_ADDRESS=127.0.0.1:$port"
    python -u -m msmjax.main "--coordinator=127.0.0.1:$port" "--processes=$processes" "--process=$process" "$@")
}

stopped=false interrupts=0
trap 'stopped=true' TERM
trap 'stopped=true interrupts=$((interrupts + 1))' INT

# Runs all processes to their end; sets `code`, the exit code of the first that failed, else 0.
run_all() {
  local pids=() i status deadline='' ended=0
  code=0
  for ((i = 0; i < processes; i++)); do
    command_of "$i" "$@"
    # The one that prints must outlive a signal to the whole group: it ends with its process.
    "${command[@]}" > >(trap '' TERM INT && exec sed -u "s/^/[$i] /") 2>&1 &
    pids[i]=$!
  done
  while ((ended < processes)); do
    for ((i = 0; i < processes; i++)); do
      [[ ${pids[i]} ]] || continue
      kill -0 "${pids[i]}" 2>/dev/null && continue
      status=0
      wait "${pids[i]}" || status=$?
      ((code)) || code=$status
      pids[i]='' ended=$((ended + 1))
    done
    if [[ ! $deadline ]] && { $stopped || ((code)); }; then
      signal_all TERM "${pids[@]}"
      deadline=$((SECONDS + grace))
    elif [[ $deadline ]] && ((SECONDS >= deadline || interrupts > 1)); then
      signal_all KILL "${pids[@]}"
    fi
    sleep 0.1 || true # a signal to the group ends it early
  done
}

signal_all() {
  local signal=$1 pid
  shift
  for pid in "$@"; do
    [[ ! $pid ]] || kill "-$signal" "$pid" 2>/dev/null || true
  done
}

if $dry_run; then
  free_port
  for ((i = 0; i < processes; i++)); do
    command_of "$i" "$@"
    printf '%q ' "${command[@]}"
    echo '&'
  done
  echo wait
  exit
fi
for ((start = 0; ; start++)); do
  free_port
  run_all "$@"
  # 75: all is saved, and the same command goes on from there. Any other end would only repeat itself.
  if ((interrupts)); then exit 130; fi
  if ((code != 75)) || $stopped || ((start == retries)); then exit "$code"; fi
  echo "local.sh: preempted; starting again ($((start + 1)) of $retries)" >&2
done
