#!/usr/bin/env bash
# A run on TPUs of GKE: renders a JobSet and creates it.
#
#     launch/gke_jobset.sh --name=cheese --image=REGISTRY/msmjax/tpu:1 --accelerator=tpu-v6e-slice --topology=4x4 \
#         --claim=shared -- --config=configs/cheese.py --workdir=/shared/runs
#
# What comes after -- goes to msmjax.main as it is. The image holds msmjax, jax[tpu] and, as its working directory, this
# repository. The cluster has JobSet (0.6 or newer) and a node pool of this accelerator and topology.
#
#     --name=NAME           name of the JobSet (required)
#     --image=IMAGE         the container image (required)
#     --accelerator=NAME    as the node pool's label says, e.g. tpu-v6e-slice, tpu-v5p-slice (required)
#     --topology=AxB[xC]    of the slice, e.g. 4x4 (required)
#     --chips-per-host=N    TPU chips of each node, by its machine type (4)
#     --claim=NAME          a PersistentVolumeClaim that all pods can write (ReadWriteMany), mounted at /shared (required)
#     --spot                run on spot nodes
#     --grace=SECONDS       time to save between SIGTERM and SIGKILL (120; spot nodes themselves give less)
#     --retries=N           how often all starts again, after exit code 75, a disruption or a crash (10)
#     --dry-run             print the manifest, create nothing
set -euo pipefail

fail() {
  echo "gke_jobset.sh: $1" >&2
  exit 2
}

name='' image='' accelerator='' topology='' chips=4 claim='' spot=false grace=120 retries=10 dry_run=false
while (($#)); do
  case $1 in
    --name=*) name=${1#*=} ;;
    --image=*) image=${1#*=} ;;
    --accelerator=*) accelerator=${1#*=} ;;
    --topology=*) topology=${1#*=} ;;
    --chips-per-host=*) chips=${1#*=} ;;
    --claim=*) claim=${1#*=} ;;
    --spot) spot=true ;;
    --grace=*) grace=${1#*=} ;;
    --retries=*) retries=${1#*=} ;;
    --dry-run) dry_run=true ;;
    --help) sed -n '2,/^set/s/^# \{0,1\}//p' "$0" && exit ;;
    --) shift && break ;;
    *) fail "$1: not a flag of mine, or without =VALUE; see --help (flags of msmjax.main come after --)" ;;
  esac
  shift
done
# Pods are named after the JobSet, and their names end at 63 characters.
[[ $name =~ ^[a-z]([-a-z0-9]{0,38}[a-z0-9])?$ ]] || fail "--name=$name: not up to 40 lower-case letters, digits and '-'"
[[ $image =~ ^[A-Za-z0-9][A-Za-z0-9._/:@-]*$ ]] || fail "--image=$image: not a container image"
[[ $accelerator =~ ^tpu[a-z0-9-]*$ ]] || fail "--accelerator=$accelerator: not a TPU's name; e.g. tpu-v6e-slice"
[[ $topology =~ ^[1-9][0-9]*(x[1-9][0-9]*){1,2}$ ]] || fail "--topology=$topology: not a topology; e.g. 4x4"
[[ $chips =~ ^[1-9][0-9]*$ ]] || fail "--chips-per-host=$chips: not a whole number from 1"
[[ $claim =~ ^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$ ]] || fail "--claim=$claim: not the name of a PersistentVolumeClaim"
[[ $grace =~ ^[1-9][0-9]*$ ]] || fail "--grace=$grace: not a whole number from 1"
[[ $retries =~ ^[0-9]+$ ]] || fail "--retries=$retries: not a whole number"
(($#)) || fail "--: nothing after it; msmjax.main needs --config at least"
[[ " $* " =~ " --workdir=/shared"[/\ ] ]] || fail "--workdir: needed after --, below /shared; what a pod writes elsewhere is gone with it"
all=$((${topology//x/*}))
((all % chips == 0)) || fail "--chips-per-host=$chips: does not divide the $all chips of --topology=$topology"
hosts=$((all / chips))

# A JSON string, which YAML reads as one too. Kubernetes replaces $(NAME) in commands; $$ stands for one $.
json() {
  local text=${1//\\/\\\\}
  text=${text//\"/\\\"} text=${text//$'\n'/\\n} text=${text//$'\t'/\\t} text=${text//\$/\$\$}
  printf '"%s"' "$text"
}

render() {
  local argument
  cat <<END
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: $name
spec:
  failurePolicy:
    # Whatever fails, all pods start again: none can go on without the others.
    maxRestarts: $retries
    rules:
      # But not after bad input or a loss that is not finite, see podFailurePolicy: the same command would say the same again.
      - name: badInput
        action: FailJobSet
        onJobFailureReasons: [PodFailurePolicy]
  replicatedJobs:
    - name: worker
      replicas: 1
      template:
        spec:
          # One pod on each host of the slice.
          parallelism: $hosts
          completions: $hosts
          completionMode: Indexed
          # A pod that exits with 75, crashes or is taken away fails the job, and the JobSet restarts it whole.
          backoffLimit: 0
          podFailurePolicy:
            rules:
              - action: FailJob
                onExitCodes:
                  containerName: msmjax
                  operator: In
                  values: [2, 3, 130]
          template:
            spec:
              restartPolicy: Never
              terminationGracePeriodSeconds: $grace
              nodeSelector:
                cloud.google.com/gke-tpu-accelerator: $accelerator
                cloud.google.com/gke-tpu-topology: $topology
END
  if $spot; then
    cat <<'END'
                cloud.google.com/gke-spot: "true"
              tolerations:
                - key: cloud.google.com/gke-spot
                  operator: Equal
                  value: "true"
                  effect: NoSchedule
END
  fi
  cat <<END
              containers:
                - name: msmjax
                  image: $image
                  command:
END
  for argument in python -u -m msmjax.main --distributed "$@"; do
    echo "                    - $(json "$argument")"
  done
  cat <<END
                  resources:
                    requests:
                      google.com/tpu: $chips
                    limits:
                      google.com/tpu: $chips
                  volumeMounts:
                    - name: shared
                      mountPath: /shared
              volumes:
                - name: shared
                  persistentVolumeClaim:
                    claimName: $claim
END
}

# Not apply: where a JobSet of this name has ended, apply would find nothing to change, and run nothing.
if $dry_run; then render "$@"; else render "$@" | kubectl create -f -; fi
