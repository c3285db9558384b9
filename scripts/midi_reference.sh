#!/bin/sh
# The reference of the profile midi, in pieces: many cells at a time on a GPU, two on two cores. A call goes on where the
# one before it was stopped, since a cell whose record exists is skipped and a training goes on from its checkpoint.
# What was measured so far, and the models behind it, are packed into one file.
#
#     sh scripts/midi_reference.sh [FOLDER] [LANES] [SEEDS]      # such as: sh scripts/midi_reference.sh /tmp/midi 8 "0 1 2"
#     timeout 540 sh scripts/midi_reference.sh /tmp/midi 8       # for nine minutes; the file is packed then too
set -u
profile=${PROFILE:-midi} # another one for a rehearsal
out=${1:-midi-reference} lanes=${2:-0} seeds=${3:-0 1 2}
mkdir -p "$out"

pack() {
    python -m maskgil.remeasure --profile "$profile" --keep true > /dev/null 2>&1 # the models of the first seed, as far as they are trained
    folders=results/runs
    if [ -d results/models ]; then folders="$folders results/models"; fi
    tar -czf "$out/midi-reference.tar.gz" --exclude='*.log' --exclude='*.bar' --exclude='*.ipynb' $folders
}

stopped=
trap 'stopped=yes; kill -TERM "$running" 2>/dev/null' TERM INT
for seed in $seeds; do
    [ -z "$stopped" ] || break
    python -m maskgil.cli reproduce --profile "$profile" --seed "$seed" --lanes "$lanes" & running=$!
    wait "$running" || wait "$running"
done
pack
ls -l "$out"
[ -z "$stopped" ]
