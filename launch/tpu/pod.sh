#!/usr/bin/env bash
# A Cloud TPU VM or slice, by gcloud. What stands before `--` and is none of ours goes to gcloud, such as --zone.
#   bash launch/tpu/pod.sh [--dry_run] create|queue|install|mount|run|fetch|delete|unqueue NAME [FLAGS] [-- WHAT]
# --dry_run prints the commands that would run, and runs none.
set -eo pipefail
shared=/mnt/shared # where `mount` puts the folder that all workers share

usage() {
    echo "error: ${1}: write bash launch/tpu/pod.sh [--dry_run] create|queue|install|mount|run|fetch|delete|unqueue NAME [FLAGS] [-- WHAT]" >&2
    exit 2
}

run() {
    if [ -n "$dry" ]; then
        printf '%q ' "$@"
        echo
    else
        "$@"
    fi
}

on_all_workers() {
    run gcloud compute tpus tpu-vm ssh "$name" --worker=all "--command=$1" "${flags[@]}"
}

dry=
if [ "${1:-}" = --dry_run ]; then
    dry=yes
    shift
fi
[ $# -ge 2 ] || usage "an action and a name are missing"
action=$1 name=$2
shift 2
flags=()
while [ $# -gt 0 ] && [ "$1" != -- ]; do
    flags+=("$1")
    shift
done
[ $# -eq 0 ] || shift
case $action in
create) run gcloud compute tpus tpu-vm create "$name" "${flags[@]}" ;;
queue) run gcloud compute tpus queued-resources create "$name" "--node-id=$name" "${flags[@]}" ;;
install) # what is committed; the machines' own Python is older than 3.11
    archive=${TMPDIR:-/tmp}/covidjax-$name.tar.gz
    run git archive --format=tar.gz --prefix=covidjax/ "--output=$archive" HEAD
    run gcloud compute tpus tpu-vm scp "$archive" "$name:covidjax.tar.gz" --worker=all "${flags[@]}"
    on_all_workers "tar -xf covidjax.tar.gz && cd covidjax && python3 -m pip install --quiet --user uv && \
python3 -m uv venv --quiet --allow-existing --seed --python=3.12 .venv && \
.venv/bin/pip install --constraint constraints/python3.12.txt --editable '.[tpu]'"
    ;;
mount) # WHAT: the address and the folder of a Filestore or another NFS server
    [ $# -eq 1 ] || usage "mount takes one SERVER:/FOLDER after --"
    on_all_workers "sudo apt-get install --yes --quiet nfs-common && sudo mkdir -p $shared && sudo mount -t nfs $(printf '%q' "$1") $shared"
    ;;
run) # WHAT: a script and its arguments
    [ $# -gt 0 ] || usage "run takes a script and its arguments after --"
    on_all_workers "cd covidjax && .venv/bin/python -u$(printf ' %q' "$@")"
    ;;
fetch) # WHAT: a folder on the first worker, and where it goes
    [ $# -eq 2 ] || usage "fetch takes two folders after --: there and here"
    run gcloud compute tpus tpu-vm scp --recurse --worker=0 "$name:$1" "$2" "${flags[@]}"
    ;;
delete) run gcloud compute tpus tpu-vm delete "$name" --quiet "${flags[@]}" ;;
unqueue) run gcloud compute tpus queued-resources delete "$name" --force --quiet "${flags[@]}" ;;
*) usage "there is no action $action" ;;
esac
