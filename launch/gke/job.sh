#!/usr/bin/env bash
# A JobSet on Google Kubernetes Engine: one pod a host, which train together; all start again where one is lost.
#   bash launch/gke/job.sh [--dry_run] --name=NAME --image=IMAGE --hosts=COUNT (--tpu=KIND:TOPOLOGY:CHIPS_A_HOST | --gpu=KIND:GPUS_A_HOST)
#       (--claim=PERSISTENT_VOLUME_CLAIM | --bucket=BUCKET) -- launch/train.py --config=... --workdir=/shared/...
# --dry_run prints the command and the manifest, and runs nothing.
set -euo pipefail

fail() {
    echo "error: $1: see the head of launch/gke/job.sh" >&2
    exit 2
}

dry='' name='' image='' hosts='' tpu='' gpu='' claim='' bucket=''
while [ $# -gt 0 ] && [ "$1" != -- ]; do
    case $1 in
    --dry_run) dry=yes ;;
    --name=* | --image=* | --hosts=* | --tpu=* | --gpu=* | --claim=* | --bucket=*)
        [[ ${1#*=} =~ ^[A-Za-z0-9][A-Za-z0-9._/:@-]*$ ]] || fail "$1 is no such value"
        flag=${1%%=*}
        printf -v "${flag#--}" %s "${1#*=}"
        ;;
    *) fail "$1 is no flag" ;;
    esac
    shift
done
[ $# -gt 1 ] || fail "there is no script after --"
shift
for flag in name image hosts; do [ -n "${!flag}" ] || fail "--$flag is missing"; done
[[ $name =~ ^[a-z]([a-z0-9-]*[a-z0-9])?$ && ${#name} -le 40 ]] || fail "--name=$name is not of a-z, 0-9 and -, at most 40 of them"
[[ $hosts =~ ^[1-9][0-9]*$ ]] || fail "--hosts=$hosts is not a number"

if [[ $tpu =~ ^([^:]+):([0-9x]+):([0-9]+)$ && -z $gpu ]]; then # Kubernetes Engine tells the pods of a slice of each other
    together="
            alpha.jobset.sigs.k8s.io/exclusive-topology: cloud.google.com/gke-nodepool"
    place="
                cloud.google.com/gke-tpu-accelerator: ${BASH_REMATCH[1]}
                cloud.google.com/gke-tpu-topology: ${BASH_REMATCH[2]}"
    devices="google.com/tpu: ${BASH_REMATCH[3]}"
    environment=" []"
elif [[ $gpu =~ ^([^:]+):([0-9]+)$ && -z $tpu ]]; then
    together=" {}"
    place="
                cloud.google.com/gke-accelerator: ${BASH_REMATCH[1]}"
    devices="nvidia.com/gpu: ${BASH_REMATCH[2]}"
    numbers=0
    for ((number = 1; number < BASH_REMATCH[2]; number++)); do numbers+=,$number; done
    # All that JAX would ask the server of Kubernetes, which a pod may not without more rights.
    environment="
                    - name: JAX_LOCAL_DEVICE_IDS
                      value: \"$numbers\"
                    - name: JAX_COORDINATOR_ADDRESS
                      value: $name-hosts-0-0.$name:55527
                    - name: COVIDJAX_PROCESSES
                      value: \"$hosts\"
                    - name: COVIDJAX_PROCESS
                      valueFrom:
                        fieldRef:
                          fieldPath: metadata.annotations['batch.kubernetes.io/job-completion-index']"
else
    fail "one of --tpu=KIND:TOPOLOGY:CHIPS_A_HOST and --gpu=KIND:GPUS_A_HOST is needed"
fi
if [ -n "$claim" ] && [ -z "$bucket" ]; then
    mounting="{}"
    volume="persistentVolumeClaim: {claimName: $claim}"
elif [ -n "$bucket" ] && [ -z "$claim" ]; then
    mounting='{gke-gcsfuse/volumes: "true"}'
    volume="csi: {driver: gcsfuse.csi.storage.gke.io, volumeAttributes: {bucketName: $bucket, mountOptions: implicit-dirs}}"
else
    fail "one of --claim and --bucket is needed: checkpoints outlive the pods there"
fi

# Exit status 2 is a mistake in the command, which no restart mends. After SIGTERM a run saves and ends.
manifest="apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: $name
spec:
  failurePolicy:
    maxRestarts: 50
    rules:
      - name: mistake
        action: FailJobSet
        onJobFailureReasons: [PodFailurePolicy]
  replicatedJobs:
    - name: hosts
      replicas: 1
      template:
        metadata:
          annotations:$together
        spec:
          completionMode: Indexed
          completions: $hosts
          parallelism: $hosts
          backoffLimit: 0
          podFailurePolicy:
            rules:
              - action: FailJob
                onExitCodes: {containerName: covidjax, operator: In, values: [2]}
          template:
            metadata:
              annotations: $mounting
            spec:
              restartPolicy: Never
              terminationGracePeriodSeconds: 120
              nodeSelector:$place
              containers:
                - name: covidjax
                  image: $image
                  command: [python, -u]
                  args: $(python3 -c 'import json, sys; print(json.dumps(sys.argv[1:]))' "$@")
                  env:$environment
                  resources:
                    limits: {$devices}
                  volumeMounts:
                    - {name: shared, mountPath: /shared}
                    - {name: memory, mountPath: /dev/shm}
              volumes:
                - name: shared
                  $volume
                - name: memory
                  emptyDir: {medium: Memory}"
if [ -n "$dry" ]; then
    printf "kubectl apply --filename=- <<'EOF'\n%s\nEOF\n" "$manifest"
else
    kubectl apply --filename=- <<<"$manifest"
fi
