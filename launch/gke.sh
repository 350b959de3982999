#!/usr/bin/env bash
# The job as a JobSet on a GKE cluster, on TPU slices or on GPU nodes. Needs kubectl, the JobSet
# controller in the cluster, an image with this project (launch/Dockerfile), and a claim for the disk
# of the workdir, which is mounted at /mnt/rstar and keeps downloads and compiled programs as well.
#
#   NAME=round1 IMAGE=... CLAIM=work HOSTS=16 TPU=tpu-v5-lite-podslice TOPOLOGY=8x8 CHIPS=4 \
#     bash launch/gke.sh [--dry-run] --config=FILE --workdir=/mnt/rstar/run
#   NAME=round1 IMAGE=... CLAIM=work HOSTS=4 GPUS=8 \
#     bash launch/gke.sh [--dry-run] --config=FILE --workdir=/mnt/rstar/run
#
# --dry-run prints the JobSet. Preempted, or lost with a node, the job is started again and goes on;
# a mistake of the user (exit code 2) ends it. The same command again, with other arguments too,
# runs the job anew when it has ended. HF_TOKEN, where it is set, is kept as the secret NAME-hub of
# the cluster, for models that are not for everybody.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/_run.sh
take_dry_run "$@"
need NAME "what the job is to be called"
need IMAGE "an image with this project, see launch/Dockerfile"
need CLAIM "the PersistentVolumeClaim of the workdir's disk (ReadWriteMany)"
need HOSTS "how many hosts: of a TPU slice, chips / CHIPS"

if [[ -n "${TPU:-}" ]]; then
  need TOPOLOGY "of the slice, for example 8x8"
  resource="google.com/tpu: ${CHIPS:-4}"
  place="nodeSelector:
              cloud.google.com/gke-tpu-accelerator: $TPU
              cloud.google.com/gke-tpu-topology: $TOPOLOGY"
  # GKE tells TPU hosts of each other, and JAX reads that.
  environment=""
  # All hosts of one slice: a cluster may have several of that topology, each a node pool.
  annotations="
  annotations:
    alpha.jobset.sigs.k8s.io/exclusive-topology: cloud.google.com/gke-nodepool"
else
  need GPUS "GPUs of a node; or TPU, the accelerator's name"
  resource="nvidia.com/gpu: $GPUS"
  place="nodeSelector: {}"
  environment="
              - {name: JAX_COORDINATOR_ADDRESS, value: '$NAME-hosts-0-0.$NAME:8476'}
              - {name: JAX_NUM_PROCESSES, value: '$HOSTS'}
              - name: JAX_PROCESS_ID
                valueFrom:
                  fieldRef:
                    fieldPath: metadata.annotations['batch.kubernetes.io/job-completion-index']"
  annotations=""
fi
arguments=""
for argument in "${ARGUMENTS[@]}"; do
  arguments+="
              - '${argument//\'/\'\'}'"
done
jobset="apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: $NAME$annotations
spec:
  failurePolicy:
    maxRestarts: 100
    rules:
    - name: mistake
      action: FailJobSet
      onJobFailureReasons: [PodFailurePolicy]
  network:
    enableDNSHostnames: true
  replicatedJobs:
  - name: hosts
    replicas: 1
    template:
      spec:
        parallelism: $HOSTS
        completions: $HOSTS
        completionMode: Indexed
        backoffLimit: 0
        podFailurePolicy:
          rules:
          - action: FailJob
            onExitCodes:
              containerName: rstar
              operator: In
              values: [2]
        template:
          spec:
            restartPolicy: Never
            terminationGracePeriodSeconds: 60
            $place
            containers:
            - name: rstar
              image: $IMAGE
              command: [python, -m, rstar_jax.main]
              args:$arguments
              env:
              - {name: XDG_CACHE_HOME, value: /mnt/rstar/.cache}$environment
              envFrom:
              - secretRef: {name: $NAME-hub, optional: true}
              ports:
              - {containerPort: 8476, protocol: TCP}
              - {containerPort: 8477, protocol: TCP}
              resources:
                limits:
                  $resource
              volumeMounts:
              - name: work
                mountPath: /mnt/rstar
              - name: shared-memory
                mountPath: /dev/shm
            volumes:
            # A container has 64 MB by itself: too few for NCCL between GPUs without NVLink.
            - name: shared-memory
              emptyDir: {medium: Memory}
            - name: work
              persistentVolumeClaim:
                claimName: $CLAIM"
if [[ -n "$DRY_RUN" ]]; then
  echo "$jobset"
  exit
fi
# The pods of a JobSet cannot be changed: one that has ended makes room for the next.
found="$(kubectl get jobset "$NAME" --ignore-not-found \
  --output='jsonpath={.metadata.name} {.status.conditions[?(@.status=="True")].type}')"
remove=(kubectl delete jobset "$NAME" --cascade=foreground)
if [[ "$found" =~ \ (Completed|Failed)( |$) ]]; then
  "${remove[@]}"
elif [[ -n "$found" ]]; then
  echo "error: $NAME has not ended yet: wait for it, or end it by: ${remove[*]}" >&2
  exit 2
fi
if [[ -n "${HF_TOKEN:-}" ]]; then
  kubectl delete secret "$NAME-hub" --ignore-not-found
  kubectl create secret generic "$NAME-hub" --from-env-file=<(echo "HF_TOKEN=$HF_TOKEN")
fi
kubectl create -f - <<<"$jobset"
