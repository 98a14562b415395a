#!/usr/bin/env bash
# Trains a fleet on this machine, on all its accelerators.
#
#   MANIFEST=subjects.yaml CONFIG=configs/lora/sd15.yaml OUT=fleet launch/local.sh
#
# Stop: Ctrl-C or SIGTERM; it saves and exits with 75. Resume: the same command again; what is done is skipped.
# Several machines that see the same MANIFEST and OUT: NUM_SHARDS=4 on each, and SHARD=0, 1, 2, 3.
set -euf -o pipefail # -f: EXTRA is split at spaces and not expanded further
umask 077            # photos of people, and what is learned of them, are their owner's alone

: "${MANIFEST:=subjects.yaml}" "${CONFIG:=configs/lora/sd15.yaml}" "${OUT:=fleet}"
: "${SHARD:=0}" "${NUM_SHARDS:=1}" "${EXTRA:=}" # EXTRA: "train.steps=400 method.rank=8"
export RAY_USAGE_STATS_ENABLED=0
export PATH="${VENV:+$VENV/bin:}$PATH"

# shellcheck disable=SC2086 # EXTRA is several words
exec jaxbooth fleet work "$MANIFEST" --config "$CONFIG" --out "$OUT" \
    --shard "$SHARD" --num-shards "$NUM_SHARDS" $EXTRA
