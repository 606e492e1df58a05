"""Where the 27 data sets are to be had: address, version and size of each, and the command that copies it.

Sizes are those that TFDS counted when it wrote the files. The table of docs/oxe.md is made here.
"""

import dataclasses
import shlex
import textwrap
from collections.abc import Iterable

_BUCKET = "gs://gresearch/robotics"
_BRIDGE = "https://rail.eecs.berkeley.edu/datasets/bridge_release/data/tfds/bridge_dataset/"
_X = "_dataset_converted_externally_to_rlds"


@dataclasses.dataclass(frozen=True)
class Origin:
    """Where one data set is to be had.

    Attributes:
      place: its directory under the root, BUILDER/VERSION.
      gib: its size in GiB.
      url: the web directory that holds it; empty if the bucket does.
      note: what to know before copying it.
    """

    place: str
    gib: float
    url: str = ""
    note: str = ""

    @property
    def address(self) -> str:
        """The directory that is copied."""
        return self.url or f"{_BUCKET}/{self.place}"

    def command(self, root: str) -> str:
        """Returns the shell command that copies it under `root`, a word of the shell. Run again, it goes on."""
        if self.url:
            return f"wget -c -r -np -nH --cut-dirs=4 --reject='index.html*' -P {root} {self.url}"
        return f"mkdir -p {root}/{self.place} && gsutil -m rsync -r {self.address} {root}/{self.place}"


ORIGINS: dict[str, Origin] = {
    "fractal20220817_data": Origin("fractal20220817_data/0.1.0", 111.07),
    "kuka": Origin("kuka/0.1.0", 778.02, note="580,392 episodes; only successful ones are read"),
    "bridge_orig": Origin(
        "bridge_dataset/1.0.0", 115.5, _BRIDGE, f"from [Berkeley]({_BRIDGE}), not the bucket's older `bridge/0.1.0`"
    ),
    "taco_play": Origin("taco_play/0.1.0", 47.77),
    "jaco_play": Origin("jaco_play/0.1.0", 9.24),
    "berkeley_cable_routing": Origin("berkeley_cable_routing/0.1.0", 4.67),
    "roboturk": Origin("roboturk/0.1.0", 45.39),
    "viola": Origin("viola/0.1.0", 10.40),
    "berkeley_autolab_ur5": Origin("berkeley_autolab_ur5/0.1.0", 76.39),
    "toto": Origin("toto/0.1.0", 127.66),
    "language_table": Origin("language_table/0.1.0", 399.87, note="0.0.1, also in the bucket, is read as well"),
    "stanford_hydra" + _X: Origin(f"stanford_hydra{_X}/0.1.0", 72.48),
    "austin_buds" + _X: Origin(f"austin_buds{_X}/0.1.0", 1.49),
    "nyu_franka_play" + _X: Origin(f"nyu_franka_play{_X}/0.1.0", 5.18),
    "furniture_bench" + _X: Origin(f"furniture_bench{_X}/0.1.0", 115.00),
    "ucsd_kitchen" + _X: Origin(f"ucsd_kitchen{_X}/0.1.0", 1.33),
    "austin_sailor" + _X: Origin(f"austin_sailor{_X}/0.1.0", 18.85),
    "austin_sirius" + _X: Origin(f"austin_sirius{_X}/0.1.0", 6.55),
    "dlr_edan_shared_control_converted_externally_to_rlds": Origin(
        "dlr_edan_shared_control_converted_externally_to_rlds/0.1.0", 3.09
    ),
    "iamlab_cmu_pickup_insert_converted_externally_to_rlds": Origin(
        "iamlab_cmu_pickup_insert_converted_externally_to_rlds/0.1.0", 50.29
    ),
    "utaustin_mutex": Origin("utaustin_mutex/0.1.0", 20.79),
    "berkeley_fanuc_manipulation": Origin("berkeley_fanuc_manipulation/0.1.0", 8.85),
    "cmu_stretch": Origin("cmu_stretch/0.1.0", 0.71),
    "bc_z": Origin("bc_z/0.1.0", 80.54, note="later versions are said to be broken"),
    "fmb_dataset": Origin("fmb/0.0.1", 1198.0, note="8,611 episodes; copies from before August 2024 have 1,804"),
    "dobbe": Origin("dobbe/0.0.1", 21.10),
    "droid": Origin("droid/1.0.1", 1741.0, note="1.0.0 has fewer instructions and is read as well"),
}

# Directories that are taken for one of the 27: for which, and what they are.
_ALIKE = {
    "bridge": ("bridge_orig", "the bucket's old copy of BridgeData"),
    "droid_100": ("droid", "a sample of 100 episodes"),
    "droid_raw": ("droid", "DROID's films, not RLDS"),
}


def how_to_get(names: Iterable[str], root: str = "ROOT") -> list[str]:
    """Returns a line for each data set, with its place and size, and then the shell commands that copy them there.

    One command, with PLACE for a place, serves all that are in the bucket. A data set of another name has no place.
    """
    names, root = list(names), shlex.quote(root)
    known = {name: ORIGINS[name] for name in names if name in ORIGINS}
    lines = [f"{name}: {known[name].place}, {_size(known[name].gib)}" if name in known else name for name in names]
    if any(not origin.url for origin in known.values()):
        lines.append(f"to copy one to its PLACE: {Origin('PLACE', 0).command(root)}")
    return lines + [f"to copy {name}: {origin.command(root)}" for name, origin in known.items() if origin.url]


def look_alikes(directories: Iterable[str]) -> list[str]:
    """Returns a sentence for each directory of a root that is taken for one of the 27 and is none."""
    sentences = []
    for name in sorted(set(directories) & set(_ALIKE)):
        of, what = _ALIKE[name]
        sentences.append(f"{name} is {what}; {of} is {ORIGINS[of].place} from {ORIGINS[of].address}")
    return sentences


def total_gib() -> float:
    """Returns the size of all 27 in GiB."""
    return sum(origin.gib for origin in ORIGINS.values())


def script() -> str:
    """Returns the shell commands that copy all 27 under $ROOT."""
    places = [origin.place for origin in ORIGINS.values() if not origin.url]
    lines = textwrap.wrap(" ".join(places), 92, break_on_hyphens=False)
    elsewhere = [origin.command('"$ROOT"') for origin in ORIGINS.values() if origin.url]
    return "\n".join(
        [
            "for place in \\",
            *(f"    {line} \\" for line in lines[:-1]),
            f"    {lines[-1]}; do",
            '  mkdir -p "$ROOT/$place"',
            f'  gsutil -m rsync -r "{_BUCKET}/$place" "$ROOT/$place"',
            "done",
            *elsewhere,
        ]
    )


def table() -> str:
    """Returns the 27 as a table in Markdown."""
    rows = ["| data set | version | size | note |", "|---|---|---|---|"]
    for name, origin in ORIGINS.items():
        builder, version = origin.place.split("/")
        notes = [f"its directory is `{builder}`"] * (builder != name) + [origin.note] * bool(origin.note)
        rows.append(f"| `{name}` | {version} | {_size(origin.gib)} | {'; '.join(notes)} |")
    return "\n".join(rows)


def _size(gib: float) -> str:
    if gib >= 1000:
        return f"{gib / 1024:.2f} TiB"
    return f"{gib:.0f} GiB" if gib >= 100 else f"{gib:.1f} GiB"
