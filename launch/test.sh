#!/usr/bin/env bash
# Runs the tests in two processes; arguments go to pytest, paths are relative to the repository.
#   bash launch/test.sh
#   bash launch/test.sh -m "not slow" tests/data
source "$(dirname "${BASH_SOURCE[0]}")/_env.sh"

cd "$root"
exec .venv/bin/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder --durations=10 "$@"
