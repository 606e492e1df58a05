#!/usr/bin/env bash
# Evaluates a checkpoint on held-out policies: tables, films, metrics.json, report.html.
#   bash launch/evaluate.sh --checkpoint=DIR [--suite=video,value,uncertainty,judge] [--policy=module:callable]
source "$(dirname "${BASH_SOURCE[0]}")/_env.sh"

exec "$root/.venv/bin/whale" evaluate "$@"
