#!/usr/bin/env bash
# Fine-tunes a checkpoint on episodes of your own robot: tokenizer with frozen encoder, behaviour model, dynamics.
#   bash launch/finetune.sh --checkpoint=DIR --data=DIR --workdir=DIR [--compare=scratch,no-behaviour]
source "$(dirname "${BASH_SOURCE[0]}")/_env.sh"

exec "$root/.venv/bin/whale" finetune "$@"
