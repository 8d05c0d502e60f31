#!/usr/bin/env bash
# What one of several machines does. slurm.sh, kubernetes.yaml and skypilot.yaml run this on each of theirs.
# The network between them must be trusted: whoever can connect to a port of a training can run code as its user.
# Arguments go to `dvc exp run`, such as: -S train.lr=0.0037
#
#   NODE NODES   this machine's number, from 0, and how many there are
#   RANKS        processes on a machine, one a GPU
#   ENDPOINT     host:port of machine 0
#   CLONE        this machine's own folder; where it outlives a restart, the run goes on from its checkpoint
#   NAME         of the experiment
#   CACHE        a DVC cache that the machines share (default: each has its own)
#   STATE        where to keep checkpoints if CLONE does not outlive a restart
#   GIT_URL      where to push the experiment (default: the repository this file is in)
set -euo pipefail
trap 'exit 143' TERM
: "${NODE:?}" "${NODES:?}" "${RANKS:?}" "${ENDPOINT:?}" "${CLONE:?}" "${NAME:?}"
repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

# The packages are those of `make setup` here; the code is the clone's, which nobody edits while it runs.
export PATH="$repository/.venv/bin:$PATH" PYTHONPATH="$CLONE/src"
export DVC_SITE_CACHE_DIR="$CLONE/.dvc/tmp/site" # see the Makefile

if [ ! -d "$CLONE" ]; then
    rm -rf "$CLONE.new"
    git clone --quiet "$repository" "$CLONE.new"
    mv "$CLONE.new" "$CLONE" # so that a clone is complete or does not exist
fi
cd "$CLONE"
[ -z "${GIT_URL:-}" ] || git remote set-url origin "$GIT_URL"
[ -z "${CACHE:-}" ] || dvc config --local cache.dir "$CACHE"
[ -z "${STATE:-}" ] || { mkdir -p .bintally "$STATE" && ln -sfn "$STATE" .bintally/train; }
# Experiments are commits, and this machine may not know its user.
git config user.email >/dev/null || { git config user.name bintally && git config user.email bintally@localhost; }
# Only this machine works here: the process that left these was killed, perhaps in another container.
rm -f .git/index.lock .dvc/tmp/rwlock

# A restart may come after the work. (grep reads to the end: `-q` would break the pipe.)
if dvc exp list --name-only origin | grep -xF -- "$NAME" >/dev/null; then
    echo "node.sh: the experiment $NAME has been pushed already"
    exit 0
fi
if ! dvc exp list --name-only | grep -xF -- "$NAME" >/dev/null; then
    dvc pull fetch encode quality split
    # A pod's name is known only once the pod is there.
    for _ in {1..300}; do
        ! getent ahosts "${ENDPOINT%:*}" >/dev/null || break
        sleep 2
    done
    # All machines train and come to the same model; the first also evaluates it.
    targets=(train)
    [ "$NODE" != 0 ] || targets=()
    set -m # what is started in the background gets a process group, which a signal can be sent to
    # SIGTERM is ignored, as DVC would end at once and leave the training behind; SIGINT goes to its stage, as after
    # Ctrl-C: the ranks save and end. The time-out allows for machines whose clone and data come late.
    (
        trap '' TERM
        exec dvc exp run --name "$NAME" -S launch.nnodes="$NODES" -S launch.ranks="$RANKS" \
            -S launch.rdzv_endpoint="$ENDPOINT" -S launch.timeout_s=900 "$@" "${targets[@]}"
    ) &
    run=$!
    stopped='' code=0
    trap 'trap "" TERM; stopped=yes; kill -INT -- "-$run" 2>/dev/null || true' TERM
    wait "$run" || code=$?
    [ -z "$stopped" ] || { code=0 && wait "$run" || code=$?; } # that wait ended with the signal
    if [ "$code" != 0 ]; then
        [ -n "$stopped" ] || sleep 5 # where one machine is stopped all end: the signal for this one may come only now
        exit "$([ -z "$stopped" ] && echo "$code" || echo 143)"
    fi
    trap - TERM
fi

[ "$NODE" != 0 ] || dvc exp push origin "$NAME"
