"""Training step of the ST-transformer against the textbook one, side by side: tokens/s and share of the matrix rate.

Command:  python benchmarks/block.py [--width 128] [--blocks 4] [--json]

Each side runs in its own process, alternating. "plain" is the textbook block as a script would run it. "prepared" adds
Whale's process settings (whale_jax.base.process), which shows the gain of the code alone.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SIDES = {"whale": ("whale", True), "textbook, plain": ("textbook", False), "textbook, prepared": ("textbook", True)}


def measure(kind: str, prepared: bool, options: argparse.Namespace) -> dict[str, float]:
    """Times forward and backward in this process; run it in a fresh one."""
    sys.path.insert(0, str(ROOT))
    if prepared:
        from whale_jax.base.process import prepare

        prepare()
    import flax.linen as nn
    import jax

    from benchmarks.textbook import TextbookTransformer
    from whale_jax.nn.transformer import STTransformer, TransformerSettings

    if kind == "whale":
        model = STTransformer(TransformerSettings(2 * options.blocks, options.width, options.heads))
    else:
        model = TextbookTransformer(options.blocks, options.width, options.heads)
    shape = (options.batch, options.frames, options.tokens, options.width)
    x = jax.random.normal(jax.random.key(0), shape)
    params = nn.unbox(model.init(jax.random.key(1), x))
    step = jax.jit(jax.value_and_grad(lambda p, x: (model.apply(p, x) ** 2).mean()))
    seconds = best_time(lambda: jax.block_until_ready(step(params, x)), options.repeats)
    weights = jax.random.normal(jax.random.key(2), (options.width, options.width))
    rows = x.reshape(-1, options.width)
    product = jax.jit(lambda a, b: a @ b)
    rate = 2 * rows.shape[0] * options.width**2 / best_time(lambda: jax.block_until_ready(product(rows, weights)), 20)
    tokens = options.batch * options.frames * options.tokens
    span = options.tokens + (options.frames + 1) / 2
    flops = 3 * tokens * options.blocks * (32 * options.width**2 + 4 * options.width * span)
    return {
        "seconds": seconds,
        "tokens_per_second": tokens / seconds,
        "gflops": flops / seconds / 1e9,
        "matrix_gflops": rate / 1e9,
        "share_of_matrix_rate": flops / seconds / rate,
    }


def best_time(run, repeats: int) -> float:
    """Returns the seconds of the fastest of `repeats` runs, after two warm-up runs."""
    run(), run()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    return min(times)


def compare(options: argparse.Namespace) -> dict:
    """Runs all sides `rounds` times, alternating; returns medians over the rounds."""
    results = {name: [] for name in SIDES}
    flags = [
        f"--{k}={getattr(options, k)}" for k in ("width", "heads", "blocks", "batch", "frames", "tokens", "repeats")
    ]
    for _ in range(options.rounds):
        for name in SIDES:
            command = [sys.executable, __file__, "--side", name, *flags]
            output = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout
            results[name].append(json.loads(output.splitlines()[-1]))
    medians = {n: {k: statistics.median(r[k] for r in rounds) for k in rounds[0]} for n, rounds in results.items()}
    whale = medians["whale"]["tokens_per_second"]
    ratios = {n: whale / m["tokens_per_second"] for n, m in medians.items() if n != "whale"}
    settings = {k: v for k, v in vars(options).items() if k not in ("side", "json")}
    return {"settings": settings, "sides": medians, "whale_over": ratios}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--blocks", type=int, default=4)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true", help="print JSON alone")
    options = parser.parse_args()
    if options.side:
        print(json.dumps(measure(*SIDES[options.side], options)))
        return
    report = compare(options)
    if not options.json:
        print(f"{'':22}{'tokens/s':>10}{'GFLOP/s':>10}{'of matrix rate':>16}")
        for name, m in report["sides"].items():
            print(f"{name:22}{m['tokens_per_second']:10.0f}{m['gflops']:10.0f}{100 * m['share_of_matrix_rate']:15.0f}%")
        for name, ratio in report["whale_over"].items():
            print(f"whale over {name}: {ratio:.2f}")
    print(json.dumps(report))


if __name__ == "__main__":
    main()
