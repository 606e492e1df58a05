#!/usr/bin/env bash
# Runs the tests in two processes, on two cores; paths are relative to the repository.
#   bash launch/test.sh                        all but those marked slow: ten minutes
#   bash launch/test.sh --all                  everything: half an hour
#   bash launch/test.sh tests/data -m slow     other arguments go to pytest
source "$(dirname "${BASH_SOURCE[0]}")/_env.sh"

cd "$root"
if [ $# -eq 0 ]; then
    set -- -m "not slow"
elif [ "$1" = --all ]; then
    shift
fi
exec .venv/bin/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder --durations=10 "$@"
