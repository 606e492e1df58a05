"""Prints what Whale-X needs of 8 and of 64 cards: the tables of docs/scale.md, from steps compiled by `whale inspect`.

Command:  python benchmarks/scale.py [--sizes small,medium,base,large] [--devices 8,64] [--kept FILE.json]

No card is needed. Every device has eight segments, so the batch grows with the devices. Each case compiles in its own
process. Results are cached in FILE.json (runs/scale.json), and a second run adds what is missing. Delete the file when
the code has changed.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ROWS = 8
NODE = 8  # cards; more of them talk over the network
CHIPS = ("RTX 4090", "H100")
SIZES = ("small", "medium", "base", "large")
# All sizes share the networks of these stages.
SHARED = (("base", "tokenizer"), ("base", "behaviour"))

Case = tuple[str, str, int, bool]


def cases(sizes: list[str], devices: list[int]) -> list[Case]:
    """Returns (size, stage, devices, fully sharded) of every row of the tables."""
    stages = [(size, "dynamics") for size in sizes] + list(SHARED)
    return [(size, stage, count, full) for size, stage in stages for count in devices for full in (False, True)]


def name_of(case: Case) -> str:
    size, stage, count, full = case
    return f"{size} {stage} {count}x1{' fully sharded' if full else ''}"


def inspect(case: Case) -> dict:
    """Returns one stage's report, from a separate process."""
    size, stage, count, full = case
    command = [
        *(sys.executable, "-m", "whale_jax", "inspect", "--json"),
        *(f"--config=configs/whale_x.py:{size}", f"--mesh={count}x1", f"--stages={stage}"),
        *(f"--config.mesh.fully_sharded={full}", f"--config.stages.{stage}.batch_size={ROWS * count}"),
    ]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    return json.loads(done.stdout)["stages"][stage]


def fill(kept: Path, wanted: list[Case]) -> dict[str, dict]:
    """Returns reports by case: those of the file, and those that it lacked, which are added one by one."""
    reports = json.loads(kept.read_text()) if kept.exists() else {}
    for case in wanted:
        if name_of(case) in reports:
            continue
        print(name_of(case), file=sys.stderr, flush=True)
        reports[name_of(case)] = inspect(case)
        beside = kept.with_suffix(".tmp")
        beside.write_text(json.dumps(reports))
        os.replace(beside, kept)
    return reports


def table(columns: list[str], rows: list[list[str]]) -> str:
    """Returns a Markdown table."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def label(case: Case) -> list[str]:
    size, stage, count, full = case
    return [f"dynamics, {size}" if stage == "dynamics" else stage, str(count), "yes" if full else "no"]


def memory_table(reports: dict[str, dict], wanted: list[Case]) -> str:
    """Returns GiB per card, and whether the cards of `CHIPS` hold that; with more cards each holds as much or less."""
    parts = ("parameters", "optimizer", "frozen", "gradients", "activations", "estimate")
    rows = []
    for case in wanted:
        report = reports[name_of(case)]
        memory = report["memory_per_device"]
        sizes = [*(memory[part] for part in parts), memory["compiled"]["peak"]]
        fits = ["yes" if report["chips"][chip]["fits"] else "no" for chip in CHIPS]
        rows.append([*label(case), *(f"{size / 2**30:.2f}" for size in sizes), *fits])
    return table(["model", "cards", "fully sharded", *parts, "CPU's program", "24 GB", "80 GB"], rows)


def time_table(reports: dict[str, dict], wanted: list[Case]) -> str:
    """Returns the milliseconds of a step's products and collectives on each kind of card, and their ratio.

    Collectives use the mesh's link: that of the node for up to `NODE` cards, otherwise the network.
    """
    rows = []
    for case in wanted:
        link, shown = "node" if case[2] <= NODE else "network", []
        for chip in CHIPS:
            times = reports[name_of(case)]["chips"][chip]
            products, sent = times["products_seconds"], times[f"{link}_seconds"]
            shown += [f"{1000 * products:.1f}", f"{1000 * sent:.1f}", f"{sent / products:.2f}"]
        rows.append([*label(case), *shown])
    per_chip = [f"{chip}: {what}" for chip in CHIPS for what in ("products", "collectives", "ratio")]
    return table(["model", "cards", "fully sharded", *per_chip], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", default=",".join(SIZES))
    parser.add_argument("--devices", default="8,64")
    parser.add_argument("--kept", type=Path, default=ROOT / "runs" / "scale.json")
    options = parser.parse_args()
    options.kept.parent.mkdir(parents=True, exist_ok=True)
    wanted = cases(options.sizes.split(","), [int(count) for count in options.devices.split(",")])
    reports = fill(options.kept, wanted)
    print(memory_table(reports, [case for case in wanted if case[2] == wanted[0][2]]))
    print(f"\n{time_table(reports, wanted)}")


if __name__ == "__main__":
    main()
