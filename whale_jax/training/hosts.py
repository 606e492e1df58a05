"""Several processes, on one host or many, that train one model; a single process touches nothing of it."""

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
    """Which of `count` processes this is, and where the first of them listens ("host:port")."""

    coordinator: str
    count: int
    index: int


def detect(
    environ: Mapping[str, str], coordinator: str = "", count: int | None = None, index: int | None = None
) -> Cluster | None:
    """The cluster that the arguments name, or that Slurm's srun or an MPI's mpirun left in the environment.

    None where there is one process. What is given goes before what is found.

    Raises:
      WhaleError: a part is missing or makes no sense.
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
    """(coordinator, count, index) as srun or mpirun say, as far as they do."""
    # Open MPI starts its daemons with srun, whose variables then are the daemon's.
    if "SLURM_STEP_NUM_TASKS" in environ and "OMPI_COMM_WORLD_SIZE" not in environ and "SLURM_PROCID" in environ:
        # A port of its own for each job, as all its processes compute it: two jobs may share a host.
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
    """The first name of a Slurm node list: "gpu[03-05,9],login" gives "gpu03"."""
    match = re.match(r"([^,\[]*)(?:\[(\w+))?", nodes)
    return (match[1] + (match[2] or "")) if match else ""


def join(cluster: Cluster, timeout: float = TIMEOUT) -> None:
    """Joins the other processes through JAX's distributed runtime; call it before any device is asked for.

    Raises:
      WhaleError: the coordinator does not answer in `timeout` seconds, or not all processes come.
    """
    name = f"process {cluster.index} of {cluster.count}"
    if cluster.index:
        _wait_for(cluster.coordinator, name, timeout)
    # JAX's own answer to SIGTERM would come before that of `interrupt`, and knows no SIGINT.
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
    """Whether this process is one of several."""
    return jax.process_count() > 1


def primary() -> bool:
    """Whether this process is the one that writes what is written once."""
    return jax.process_index() == 0


_numbers = itertools.count()


def _fresh_name(what: str) -> str:
    """A name in the runtime's store that was not used before; the same one on every process, for all ask in turn."""
    return f"whale/{what}/{next(_numbers)}"


def _store():
    from jax._src import distributed  # the runtime's key-value store has no public name

    return distributed.global_state.client


def agree(facts: Mapping[str, Any], timeout: float = TIMEOUT) -> None:
    """Raises WhaleError on every process if one of them has other facts (flat, JSON) than the first."""
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
    """Lets the first process go through alone, and the others after it."""
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
    """Holds the work directory that these processes share, through the first one of them.

    Raises:
      WhaleError: see `Workdir.locked`; on the others, that the first one has stopped.
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
    """Waits for as long as it takes; in turns of a second, between which signals are answered."""
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
    """Tells all processes, at the same step, that one of them is asked to stop."""

    def __init__(self, mesh: Mesh):
        self._sharding = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
        self._any = jax.jit(jnp.max, out_shardings=replicated(mesh))
        self._last: jax.Array | None = None

    def ask(self, wish: bool) -> bool:
        """Whether to stop now: a single process's own wish, or that of any of several at the last call."""
        if not several():
            return wish
        # The last step's vote, which has arrived, and not this one's, for which the devices would have to be awaited.
        last = self._last
        mine = np.full(len(jax.local_devices()), wish, np.int32)
        self._last = self._any(jax.make_array_from_process_local_data(self._sharding, mine))
        return last is not None and bool(last)
