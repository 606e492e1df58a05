"""Training of one model by several processes on one host or many. A single process uses none of this."""

import contextlib
import dataclasses
import itertools
import json
import re
import socket
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from whale_jax.base.errors import WhaleError
from whale_jax.base.text import say, speak_as
from whale_jax.base.workdir import Workdir
from whale_jax.training.sharding import replicated

TIMEOUT = 300  # seconds that hosts wait for each other to start
_LOCAL_KEYS = ("data.root", "data.index")  # paths may differ from host to host


@dataclasses.dataclass(frozen=True)
class Cluster:
    """The index of this process among `count` processes, and the address of the first one ("host:port")."""

    coordinator: str
    count: int
    index: int


def detect(
    environ: Mapping[str, str], coordinator: str = "", count: int | None = None, index: int | None = None
) -> Cluster | None:
    """Returns the cluster that the arguments name, or that Slurm's srun or MPI's mpirun describe in the environment.

    Arguments take precedence over the environment. Returns None if there is only one process.

    Args:
      environ: environment variables.
      coordinator: address of the first process, "host:port".
      count: number of processes.
      index: index of this process.

    Raises:
      WhaleError: a value is missing or invalid.
    """
    found_at, found_count, found_index = _launcher(environ)
    coordinator = coordinator or found_at
    count = found_count if count is None else count
    index = found_index if index is None else index
    if count == 1 or (count is None and not coordinator and index is None):
        return None
    if count is None or index is None:
        raise WhaleError(
            "--coordinator, --num-processes and --process-id belong together, unless srun or mpirun started this "
            "process; give all three."
        )
    if not 0 <= index < count:
        raise WhaleError(f"--process-id is {index}; of {count} processes it is 0 to {count - 1}.")
    if not re.fullmatch(r".+:\d+", coordinator or ""):
        raise WhaleError(
            f"This is process {index} of {count}, and the first one's address is not known"
            f"{f' ({coordinator!r} is not HOST:PORT)' if coordinator else ''}; give --coordinator=HOST:PORT."
        )
    return Cluster(coordinator, count, index)


def _launcher(environ: Mapping[str, str]) -> tuple[str, int | None, int | None]:
    """Returns (coordinator, count, index) as far as srun or mpirun set them."""
    # Open MPI starts its daemons with srun, whose variables then describe the daemon and not this process.
    if "SLURM_STEP_NUM_TASKS" in environ and "OMPI_COMM_WORLD_SIZE" not in environ and "SLURM_PROCID" in environ:
        # All processes of a job compute the same port. Jobs have different ports because they may share a host.
        port = 49152 + int(environ.get("SLURM_JOB_ID", "0")) % 16384
        first = _first_host(environ.get("SLURM_STEP_NODELIST", ""))
        at = f"{first}:{port}" if first else ""
        return at, int(environ["SLURM_STEP_NUM_TASKS"]), int(environ["SLURM_PROCID"])
    for size, rank, local in (
        ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"),
        ("PMI_SIZE", "PMI_RANK", "MPI_LOCALNRANKS"),
    ):
        if size in environ and rank in environ:
            at = "127.0.0.1:49152" if environ.get(local) == environ[size] else ""
            return at, int(environ[size]), int(environ[rank])
    return "", None, None


def _first_host(nodes: str) -> str:
    """Returns the first name of a Slurm node list: "gpu[03-05,9],login" gives "gpu03"."""
    match = re.match(r"([^,\[]*)(?:\[(\w+))?", nodes)
    return (match[1] + (match[2] or "")) if match else ""


def join(cluster: Cluster, timeout: float = TIMEOUT) -> None:
    """Joins the other processes through JAX's distributed runtime. Call it before any use of a device.

    Raises:
      WhaleError: the coordinator does not answer within `timeout` seconds, or not all processes join.
    """
    name = f"process {cluster.index} of {cluster.count}"
    if cluster.index:
        _wait_for(cluster.coordinator, name, timeout)
    # JAX's own handler of SIGTERM would run before that of `interrupt`, and does not handle SIGINT.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            cluster.coordinator,
            cluster.count,
            cluster.index,
            cluster_detection_method="deactivate",
            initialization_timeout=int(timeout),
        )
    except (RuntimeError, ValueError) as error:
        first_line = (str(error).splitlines() or [""])[0][:160]
        raise WhaleError(
            f"The {cluster.count} processes did not find each other at {cluster.coordinator} within {timeout:.0f} s "
            f"({name}: {first_line}). Start all of them with the same --coordinator and --num-processes."
        ) from error
    speak_as(cluster.index, cluster.count)
    say(f"{cluster.count} processes, coordinator {cluster.coordinator}")


def _wait_for(address: str, name: str, timeout: float) -> None:
    host, _, port = address.rpartition(":")
    deadline = time.monotonic() + timeout
    while True:
        try:
            socket.create_connection((host, int(port)), timeout=2).close()
            return
        except OSError as error:
            if time.monotonic() > deadline:
                raise WhaleError(
                    f"The coordinator {address} has not answered {name} for {timeout:.0f} s ({error}). Is process 0 "
                    "running, and is the port open between the hosts?"
                ) from error
            time.sleep(0.2)


def several() -> bool:
    """Returns whether this process is one of several."""
    return jax.process_count() > 1


def primary() -> bool:
    """Returns whether this process is the first one, which writes the files that are written once."""
    return jax.process_index() == 0


_numbers = itertools.count()


def _fresh_name(what: str) -> str:
    """Returns an unused name for the runtime's store.

    The name is the same on every process because all of them ask in the same order.
    """
    return f"whale/{what}/{next(_numbers)}"


def _store():
    from jax._src import distributed  # the runtime's key-value store has no public name

    return distributed.global_state.client


def agree(facts: Mapping[str, Any], timeout: float = TIMEOUT) -> None:
    """Checks that all processes have the same facts.

    Args:
      facts: values that JSON can hold, in a flat dictionary.
      timeout: seconds to wait for the other processes.

    Raises:
      WhaleError: on every process, if the facts of one of them differ from those of the first.
    """
    if not several():
        return
    store, here, milliseconds, name = _store(), jax.process_index(), int(1000 * timeout), _fresh_name("agree")
    facts = {key: value for key, value in facts.items() if key not in _LOCAL_KEYS}
    if here == 0:
        store.key_value_set(f"{name}/facts", json.dumps(facts))
    theirs = json.loads(store.blocking_key_value_get(f"{name}/facts", milliseconds))
    ours = json.loads(json.dumps(facts))
    keys = [key for key in sorted(ours.keys() | theirs.keys()) if ours.get(key) != theirs.get(key)]
    said = "; ".join(f"{key} is {ours.get(key)!r} there and {theirs.get(key)!r} on the first" for key in keys[:3])
    store.key_value_set(f"{name}/differs/{here}", said or "-")
    for process in range(jax.process_count()):
        verdict = store.blocking_key_value_get(f"{name}/differs/{process}", milliseconds)
        if verdict != "-":
            raise WhaleError(
                f"Process {process} runs something else than the first one: {verdict}. Give all the same config and "
                "the same installation."
            )


@contextlib.contextmanager
def primary_first() -> Iterator[None]:
    """Lets the first process run the block alone, and the others after it."""
    name = _fresh_name("primary_first")
    if several() and not primary():
        _wait_for_key(name)
    try:
        yield
    except BaseException:
        _tell(name, "failed")
        raise
    _tell(name, "done")


@contextlib.contextmanager
def locked(workdir: Workdir) -> Iterator[None]:
    """Locks the work directory that the processes share. The first process holds the lock.

    Raises:
      WhaleError: as `Workdir.locked` does; on the other processes, the first one has stopped.
    """
    with contextlib.ExitStack() as stack:
        with primary_first():
            if primary():
                stack.enter_context(workdir.locked())
        yield


def _tell(name: str, outcome: str) -> None:
    if several() and primary():
        _store().key_value_set(name, outcome)


def _wait_for_key(name: str) -> None:
    """Waits without limit, one second at a time so that signals are handled in between."""
    while True:
        try:
            outcome = _store().blocking_key_value_get(name, 1000)
            break
        except jax.errors.JaxRuntimeError as error:
            if "DEADLINE_EXCEEDED" not in str(error):
                raise
    if outcome == "failed":
        raise WhaleError("The first process has stopped; it says why.")


class Vote:
    """A vote that tells all processes, at the same step, that one of them is asked to stop."""

    def __init__(self, mesh: Mesh):
        self._sharding = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
        self._any = jax.jit(jnp.max, out_shardings=replicated(mesh))
        self._last: jax.Array | None = None

    def ask(self, wish: bool) -> bool:
        """Returns whether to stop now: a single process's wish, or the wish of any process at the last call."""
        if not several():
            return wish
        # The result of the last step's vote is ready. For this step's vote the process would wait for the devices.
        last = self._last
        mine = np.full(len(jax.local_devices()), wish, np.int32)
        self._last = self._any(jax.make_array_from_process_local_data(self._sharding, mine))
        return last is not None and bool(last)
