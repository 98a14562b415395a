#!/usr/bin/env bash
# Trains a fleet, or one shard of it, on a Cloud TPU VM: asks for a queued resource, waits, installs, runs, deletes it.
# Preempted, it is deleted and asked for again; what is done is skipped.
#
#   DRY_RUN=1 launch/tpu_vm.sh                    prints the gcloud commands and runs none
#   NFS=10.0.0.2:/share ZONE=us-west4-a launch/tpu_vm.sh
#   for s in 0 1 2 3; do SHARD=$s NUM_SHARDS=4 NFS=... launch/tpu_vm.sh & done; wait
#
# Stop: Ctrl-C or SIGTERM; the hosts save, then the resource is deleted (KEEP=1: stays, and costs). Run it in tmux or on
# a small VM. Resume: the same command again. MANIFEST, CONFIG and OUT are paths on the TPU VM.
set -euf -o pipefail # -f: EXTRA is split at spaces and not expanded further
umask 077            # photos of people, and what is learned of them, are their owner's alone

: "${MANIFEST:=/mnt/data/subjects.yaml}" "${CONFIG:=/mnt/data/config.yaml}" "${OUT:=/mnt/data/fleet}" "${EXTRA:=}"
: "${SHARD:=0}" "${NUM_SHARDS:=1}" "${NAME:=jaxbooth-$SHARD}" "${ZONE:=us-west4-a}"
: "${ACCELERATOR:=v5litepod-8}" "${RUNTIME:=v2-alpha-tpuv5-lite}" "${SPOT:=1}" "${VALID_UNTIL:=6h}"
: "${POLL_SECONDS:=60}" "${MAX_RETRIES:=5}" "${DRY_RUN:=0}" "${KEEP:=0}" "${SERVICE_ACCOUNT:=}" "${HF_SECRET:=}"
: "${NFS:=}" "${PACKAGE:=jaxbooth[tpu]}" # NFS: server:/path, for /mnt/data; PACKAGE: what pip installs there

# On every host, once it is there. SETUP replaces it.
mount="sudo mkdir -p /mnt/data; mountpoint -q /mnt/data || { sudo apt-get -qq update; "
mount+="sudo apt-get -qq install -y nfs-common; sudo mount -t nfs ${NFS@Q} /mnt/data; }"
install="test -x ~/venv/bin/jaxbooth || { python3 -m venv ~/venv && ~/venv/bin/pip install -q ${PACKAGE@Q}; }"
: "${SETUP:=set -e; ${NFS:+$mount; }$install}"

# On every host, the same. The lock: gcloud repeats a command whose connection broke, and the first one may still run.
# shellcheck disable=SC2206 # EXTRA is several words
words=(jaxbooth fleet work "$MANIFEST" --config "$CONFIG" --out "$OUT"
    --shard "$SHARD" --num-shards "$NUM_SHARDS" $EXTRA)
work="umask 077; export RAY_USAGE_STATS_ENABLED=0 PATH=\$HOME/venv/bin:\$PATH; "
if [ -n "$HF_SECRET" ]; then # a secret of Secret Manager, read there: never on a command line
    work+="HF_TOKEN=\$(gcloud secrets versions access latest --secret=${HF_SECRET@Q}); export HF_TOKEN; "
fi
work+="exec 9>~/jaxbooth.lock; flock 9; echo \$\$ >~/jaxbooth.pid; exec ${words[*]@Q}"

run() {
    if [ "$DRY_RUN" = 1 ]; then echo "${*@Q}"; else "$@"; fi
}

queued() { # queued VERB [FLAG...]
    run gcloud compute tpus queued-resources "$1" "$NAME" --zone="$ZONE" "${@:2}"
}

on_all_hosts() {
    run gcloud compute tpus tpu-vm ssh "$NAME" --zone="$ZONE" --worker=all --quiet --command="$1"
}

create() {
    local flags=(--node-id="$NAME" --accelerator-type="$ACCELERATOR" --runtime-version="$RUNTIME")
    flags+=(--valid-until-duration="$VALID_UNTIL" --quiet)
    [ "$SPOT" = 0 ] || flags+=(--spot)
    [ -z "$SERVICE_ACCOUNT" ] || flags+=(--service-account="$SERVICE_ACCOUNT")
    queued create "${flags[@]}"
}

delete() { queued delete --force --quiet; }

state() { queued describe --format='value(state.state)' 2>/dev/null || true; } # nothing: there is none

wait_until_active() {
    while :; do
        case $(state) in
            ACTIVE) return ;;
            '') create ;;
            SUSPENDED) delete ;; # preempted
            FAILED)
                echo "$NAME is FAILED; look at: gcloud compute tpus queued-resources describe $NAME --zone=$ZONE" >&2
                exit 69
                ;;
            *) sleep "$POLL_SECONDS" & wait $! ;; # so that a trap need not wait
        esac
    done
}

# shellcheck disable=SC2329 # the trap calls it
stop() {
    trap '' INT TERM
    on_all_hosts "kill -TERM \$(cat ~/jaxbooth.pid); flock ~/jaxbooth.lock true" || true # waits until it has saved
    [ "$KEEP" = 1 ] || delete || true # there may be none yet
    exit 75
}

if [ "$DRY_RUN" = 1 ]; then
    create
    queued describe --format='value(state.state)'
    on_all_hosts "$SETUP"
    on_all_hosts "$work"
    delete
    exit
fi

trap stop INT TERM
retries=0
while :; do
    wait_until_active
    code=0
    { on_all_hosts "$SETUP" && on_all_hosts "$work"; } &
    wait $! || code=$? # in the background: a trap runs at once, not after the training
    [ "$code" != 0 ] || break
    [ "$(state)" = ACTIVE ] || continue # preempted: not counted
    case $code in
        75) ;;                                                                     # saved: not counted
        70 | 134 | 137 | 139 | 255) [ $((retries += 1)) -le "$MAX_RETRIES" ] || break ;; # the machine's fault
        *) break ;;                                                                # bad input: never again by itself
    esac
done
[ "$KEEP" = 1 ] || delete
exit "$code"
