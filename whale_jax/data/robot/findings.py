"""Reports what an import found."""

import dataclasses
from collections import Counter
from collections.abc import Sequence

import numpy as np

from whale_jax.base.text import one_line
from whale_jax.data.contract.actions import ActionSpec
from whale_jax.data.contract.recorded import Reader, Recorded
from whale_jax.data.robot.motion import Motion
from whale_jax.data.store.store import EpisodeStore

_SHOWN = 10


@dataclasses.dataclass(frozen=True)
class Found:
    """The contents of a source and of the store made from it.

    Attributes:
      kind: kind of source.
      splits: number of episodes by split.
      frames, rate_hz: number and rate of the stored frames.
      source_hz: lowest and highest recorded rate.
      camera, cameras: the view that was used, and all views.
      tasks: number of episodes by text.
      spec: contract of the actions.
      actions: (min, mean, max, share beyond the range) of each dimension; empty if they were not converted.
      left_out: number of episodes and rows left out, by cause.
      repaired: number of values by how they were repaired.
      sources: names of the columns that the robot's file numbers, by dimension.
      noted: number of episodes by what is unusual about them.
    """

    kind: str
    splits: dict[str, int]
    frames: int
    rate_hz: float
    source_hz: tuple[float, float]
    camera: str
    cameras: tuple[str, ...]
    tasks: dict[str, int]
    spec: ActionSpec
    actions: tuple[tuple[float, float, float, float], ...] = ()
    left_out: dict[str, int] = dataclasses.field(default_factory=dict)
    repaired: dict[str, int] = dataclasses.field(default_factory=dict)
    noted: dict[str, int] = dataclasses.field(default_factory=dict)
    sources: dict[str, str] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(
        cls,
        reader: Reader,
        pairs: Sequence[tuple[Recorded, Motion]],
        splits: Sequence[str],
        spec: ActionSpec,
        camera: str,
        left_out: dict[str, int],
        sources: dict[str, str],
    ) -> "Found":
        """Describes a LeRobot data set or a folder, from the imported episodes, their motion and their splits."""
        actions = np.concatenate([motion.actions for _, motion in pairs])
        outside = (actions < np.float32(spec.low)) | (actions > np.float32(spec.high))
        columns = (actions.min(0), actions.mean(0, dtype=np.float64), actions.max(0), outside.mean(0))
        rates = [recorded.rate_hz for recorded, _ in pairs]
        left_out = left_out | {"last rows that no whole step follows": sum(motion.dropped for _, motion in pairs)}
        repaired = {
            "angles wrapped into -pi to pi": sum(motion.wrapped for _, motion in pairs),
            "gripper values beyond open or closed, set to it": sum(motion.outside for _, motion in pairs),
        }
        return cls(
            kind=reader.kind,
            splits=dict(Counter(splits)),
            frames=sum(len(motion.rows) for _, motion in pairs),
            rate_hz=spec.rate_hz,
            source_hz=(min(rates), max(rates)),
            camera=camera,
            cameras=tuple(reader.cameras) or (camera,),
            tasks=dict(Counter(recorded.task for recorded, _ in pairs)),
            spec=spec,
            actions=tuple(tuple(map(float, row)) for row in zip(*columns, strict=True)),
            left_out={cause: count for cause, count in left_out.items() if count},
            repaired={what: count for what, count in repaired.items() if count},
            sources=sources,
            noted=dict(Counter(note for recorded, _ in pairs for note in (*recorded.notes, *recorded.doubts))),
        )

    @classmethod
    def of_store(cls, store: EpisodeStore, kind: str, left_out: dict[str, int]) -> "Found":
        """Describes a source whose actions were copied unchanged."""
        spec, camera = store.action_spec, str(store.info.get("camera", ""))
        return cls(
            kind=kind,
            splits=dict(Counter(record["split"] for record in store.records)),
            frames=store.num_frames,
            rate_hz=spec.rate_hz,
            source_hz=(spec.rate_hz, spec.rate_hz),
            camera=camera,
            cameras=(camera,),
            tasks=dict(Counter(record["task"] for record in store.records)),
            spec=spec,
            left_out=left_out,
        )


def to_text(found: Found, root: str) -> str:
    """Returns what was found, as lines for a terminal."""
    splits = ", ".join(f"{count} {split}" for split, count in found.splits.items())
    low, high = found.source_hz
    same = abs(high / found.rate_hz - 1) < 0.02 and abs(low / found.rate_hz - 1) < 0.02
    recorded = f"{low:.4g} Hz" if abs(high - low) < 0.02 * high else f"{low:.4g} to {high:.4g} Hz"
    others = f" of {', '.join(found.cameras)}" if len(found.cameras) > 1 else ""
    lines = [
        f"{root}: {found.kind}, {sum(found.splits.values())} episodes ({splits}), {found.frames} frames",
        f"  rate      {found.rate_hz:.4g} Hz" + ("" if same else f", resampled from {recorded}"),
        f"  camera    {found.camera}{others}",
    ]
    for text, count in list(found.tasks.items())[:_SHOWN]:
        lines.append(f"  task      {one_line(text)} ({count})")
    if len(found.tasks) > _SHOWN:
        lines.append(f"  task      and {len(found.tasks) - _SHOWN} more")
    if found.sources:
        lines.append(f"  columns   {', '.join(f'{name} is {source!r}' for name, source in found.sources.items())}")
    lines += _dimensions(found)
    lines += [f"  left out  {count} {cause}" for cause, count in found.left_out.items()]
    lines += [f"  repaired  {count} {what}" for what, count in found.repaired.items()]
    lines += [f"  noted     {count} episode(s) {what}" for what, count in found.noted.items()]
    return "\n".join(lines)


def _dimensions(found: Found) -> list[str]:
    if not found.actions:
        return []
    width = max(10, *map(len, found.spec.names))
    header = ("min", "mean", "max", "low", "high", "beyond")
    lines = [f"  {'action':<{width}}{'kind':<10}" + "".join(f"{name:>11}" for name in header) + "  unit"]
    spec = found.spec
    for d, (least, mean, most, share) in enumerate(found.actions):
        numbers = "".join(f"{value:>11.4g}" for value in (least, mean, most, spec.low[d], spec.high[d]))
        lines.append(f"  {spec.names[d]:<{width}}{spec.kinds[d]:<10}{numbers}{share:>10.1%}  {spec.units[d]}")
    return lines
