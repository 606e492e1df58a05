"""Accelerators by their makers' data sheets: the denominators of MFU and of the tables in docs/scale.md."""

import dataclasses
import re


@dataclasses.dataclass(frozen=True)
class Chip:
    """One kind of accelerator.

    Attributes:
      name: its name in the tables; kind: a part of `jax.Device.device_kind`.
      tflops: dense bfloat16 matrix products with float32 sums, TFLOP/s.
      memory_gib: usable memory in GiB; memory_gbs: its bandwidth in GB/s.
      node_gbs: GB/s that one chip sends to the others of its node while it receives as much.
      network_gbs: GB/s that a node of eight sends to other nodes, regardless of what a ring through all chips passes
        on: one port of 400 Gb/s per chip (A100: 200), or one of 100 Gb/s for all eight if cards sit on PCIe.
    """

    name: str
    kind: str
    tflops: float
    memory_gib: float
    memory_gbs: float
    node_gbs: float
    network_gbs: float


CHIPS = (
    Chip("RTX 4090", "4090", 165.2, 22.5, 1008.0, 25.0, 12.5),
    Chip("A100", "A100", 312.0, 79.0, 2039.0, 300.0, 200.0),
    Chip("H100", "H100", 989.4, 79.0, 3350.0, 450.0, 400.0),
    Chip("H200", "H200", 989.4, 139.0, 4800.0, 450.0, 400.0),
    Chip("B200", "B200", 2250.0, 178.0, 8000.0, 900.0, 400.0),
)


def chip_of(device_kind: str) -> Chip | None:
    """Returns the chip of this JAX name, or None if it is not listed, like slower versions of the same name."""
    if re.search(r"PCIe|NVL|Laptop|4090 D", device_kind):
        return None
    return next((chip for chip in CHIPS if re.search(rf"\b{chip.kind}\b", device_kind)), None)
