#!/usr/bin/env bash
# Pretrains a world model and writes its report. With no arguments: the quick start, Meta-World on a CPU.
#   bash launch/pretrain.sh
#   bash launch/pretrain.sh --config=configs/whale_x.py --workdir=DIR --config.data.root=DIR
source "$(dirname "${BASH_SOURCE[0]}")/_env.sh"

if [ $# -eq 0 ]; then
    echo "pretrain: configs/quickstart.py; everything goes to $root/runs/quickstart" >&2
    set -- --config="$root/configs/quickstart.py" --workdir="$root/runs/quickstart"
fi
exec "$root/.venv/bin/whale" train "$@"
