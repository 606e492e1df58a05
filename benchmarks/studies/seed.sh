#!/usr/bin/env bash
# Trains one seed of configs/study_small.py and keeps its figures in docs/study; a second call resumes.
#   bash benchmarks/studies/seed.sh SEED
# The first call records the episodes, runs/study_data, which all seeds share: a quarter of an hour on two cores.
# A seed takes two and a half hours on one core, so two seeds go side by side: taskset -c 0 bash … 0, taskset -c 1 …
source "$(dirname "${BASH_SOURCE[0]}")/../../launch/_env.sh"
cd "$root"

seed=$1 data=$root/runs/study_data run=runs/study_$1
python=.venv/bin/python whale=.venv/bin/whale

$whale collect --root="$data" --tasks=plate-slide,button-press-wall,faucet-close,coffee-push,handle-press \
    --train=28 --valid=2 --test=20 --near-misses=28 --valid-near-misses=2 --steps=65 --action-repeat=8
$whale train --config=configs/study_small.py --workdir="$run" --until=reward \
    --config.seed="$seed" --config.data.root="$data" "--config.data.record.tasks=()"
$python benchmarks/studies/ablation.py train "$run"

[ -e "docs/study/uncertainty-$seed.npz" ] || {
    $whale evaluate --checkpoint="$run" --suite=uncertainty --episodes=12 --output="$run/uncertainty" \
        --evaluation.uncertainty.estimators=retracing,retracing:starts=any,entropy
    $python benchmarks/studies/uncertainty.py keep "$run/uncertainty"
}
[ -e "docs/study/ablation-$seed.npz" ] || $python benchmarks/studies/ablation.py measure "$run"
[ -e "docs/study/closed-loop-$seed.npz" ] || $python benchmarks/studies/closed_loop.py measure "$run"
