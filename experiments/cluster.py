"""Execute runs on a Dask cluster whose workers compute as this process would.

Only this process writes rows. If a worker dies, the scheduler gives its run to another worker.
A worker with other software, or with more than one thread, is refused by name; if it joins
later, the sweep stops, and the same command continues it.
"""

import asyncio
import contextlib
import functools
import hashlib
import importlib
import logging
import pickle
import queue
import socket
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments import record, runner

if TYPE_CHECKING:
    from distributed import Client, Future

CONNECT_S = 10.0
LOOK_EVERY_S = 1.0  # between looks at the workers that joined or left
_SOURCES = ("hypsolve", "instances", "experiments")
_COMPARED = (*record.COMPUTING, "distributed")


@dataclass(slots=True)
class Cluster:
    """Workers of a Dask scheduler; `connected` opens it."""

    address: str
    client: "Client"
    workers: set[str] = field(default_factory=set)  # addresses of the accepted workers
    max_workers: int = 0  # at one time
    machines: dict[str, dict[str, Any]] = field(default_factory=dict)  # by host
    looked_s: float = 0.0

    @property
    def jobs(self) -> int:
        """Number of runs at a time: one per worker."""
        return max(1, len(self.workers))

    def where(self) -> dict[str, Any]:
        """Return the largest number of workers so far, and their hosts without names."""
        hosts = list(self.machines.values())
        version = about_here()["software"]["distributed"]
        return {
            "cluster": {"distributed": version, "workers": self.max_workers, "hosts": hosts}
        }

    def execute(
        self, runs: Sequence[runner.Run], *, started: Callable[[runner.Run], None]
    ) -> runner.Rows:
        """Yield each run with its row when it ends; see `runner.Workers`.

        Closing the iterator cancels the runs that have not begun. A worker finishes its current
        run, and the answer is dropped.
        """
        waiting = deque(runs)
        running: dict[Any, tuple[runner.Run, Future, str]] = {}  # and its worker
        ended: queue.SimpleQueue[Future] = queue.SimpleQueue()
        try:
            while True:
                self.look()
                idle = sorted(self.workers - {address for _, _, address in running.values()})
                while waiting and idle:
                    run, address = waiting.popleft(), idle.pop()
                    future = self._submit(run, address)
                    running[future.key] = run, future, address
                    future.add_done_callback(ended.put)
                    started(run)
                if not running and not waiting:
                    return
                with contextlib.suppress(queue.Empty):
                    future = ended.get(timeout=LOOK_EVERY_S)
                    run, _, _ = running[future.key]
                    answer = self._answer(run, future)
                    if answer is None:
                        ended.put(future)
                        continue
                    del running[future.key]
                    yield run, run.row() | answer
        finally:
            if self.client.status == "running":
                self.client.cancel([future for _, future, _ in running.values()], force=True)

    def look(self) -> None:
        """Update the set of workers, at most every LOOK_EVERY_S, and check the new ones.

        Raises
        ------
        RuntimeError
            If the scheduler is lost, or a worker does not fit; the message names it, and why.
        """
        if self.workers and time.monotonic() < self.looked_s + LOOK_EVERY_S:
            return
        try:
            there = self.client.nthreads()
            new = sorted(there.keys() - self.workers)
            answers = self._ask(new) if new else {}
            if any(isinstance(answer, OSError) for answer in answers.values()):
                there = self.client.nthreads()  # some may have left meanwhile
        except OSError:
            raise self._lost() from None
        misfits = []
        for address in there.keys() & answers.keys():
            answer = answers[address]
            if isinstance(answer, Exception):
                misfits.append(f"worker {address}: {_describe(answer)}")
            elif why := misfit(answer, there[address]):
                misfits.append(f"worker {address} on {answer['host']}: {why}")
            else:
                self.machines[answer["host"]] = answer["machine"]
        if misfits:
            others = f" (and {len(misfits) - 3} others)" if len(misfits) > 3 else ""
            raise RuntimeError("; ".join(misfits[:3]) + others)
        if self.workers and not there:
            print(f"no worker left at {self.address}: waiting for one", flush=True)
        self.workers = there.keys() & (self.workers | answers.keys())
        self.looked_s = time.monotonic()
        self.max_workers = max(self.max_workers, len(self.workers))

    def _ask(self, addresses: list[str]) -> dict[str, Any]:
        """Return what each worker reports about itself, or the exception it raised."""
        question = pickle.dumps(_Later(about_here))
        return self.client.run(pickle.loads, question, workers=addresses, on_error="return")

    def _submit(self, run: runner.Run, address: str) -> "Future":
        # `_measure` loads the run, after it has checked that the worker fits
        task = pickle.dumps(_Later(_measure, pickle.dumps(run), about_here()))
        return self.client.submit(
            pickle.loads,
            task,
            key=f"run-{uuid.uuid4()}",
            workers=[address],  # the scheduler itself would queue short runs behind long ones
            allow_other_workers=True,  # if this one dies
        )

    def _answer(self, run: runner.Run, future: "Future") -> runner.Row | None:
        """Return the row of a run that ended; None if it was lost with its worker, for now."""
        from distributed import KilledWorker

        try:
            return future.result(timeout=LOOK_EVERY_S)
        except Exception as error:
            if future.status != "error":
                if isinstance(error, TimeoutError):  # the scheduler repeats it
                    return None
                raise self._lost() from None
            if isinstance(error, KilledWorker):
                n_died = error.allowed_failures + 1
                raise RuntimeError(f"{run}: {n_died} workers died while running it") from None
            self.looked_s = 0.0
            self.look()  # a worker that joined meanwhile may not fit
            raise RuntimeError(f"{run}: {_describe(error)}") from error

    def _lost(self) -> RuntimeError:
        return RuntimeError(
            f"the scheduler at {self.address} is lost: once back, the same command goes on"
        )


@contextlib.contextmanager
def connected(address: str) -> Iterator[Cluster]:
    """Connect to a scheduler, wait for its first worker, and check all workers.

    Raises
    ------
    OSError
        If no scheduler answers, or if workers do not fit; the message names them.
    """
    from distributed import Client

    _check_address(address)
    for name in ("distributed", "distributed.client", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # this module reports what matters
    try:
        asyncio.run(_meet(address))
        client = Client(address, timeout=CONNECT_S, set_as_default=False)
    except (OSError, TimeoutError):
        raise OSError(f"no Dask scheduler answers at {address}") from None
    with client:
        cluster = Cluster(address, client)
        try:
            cluster.look()
            if not cluster.workers:
                print(f"no worker at {address} yet: waiting for one", flush=True)
            while not cluster.workers:
                time.sleep(LOOK_EVERY_S)
                cluster.look()
        except RuntimeError as error:
            raise OSError(error) from None
        yield cluster


async def _meet(address: str) -> None:
    """Ask the scheduler to identify itself: a client would wait forever for a silent port."""
    from distributed.core import rpc
    from distributed.security import Security

    arguments = Security().get_connection_args("client")
    async with asyncio.timeout(CONNECT_S), rpc(address, connection_args=arguments) as there:
        await there.identity()


def _check_address(address: str) -> None:
    """Check the address first: a client with a bad one takes seconds to give up."""
    from distributed.comm import get_address_host_port, parse_address
    from distributed.security import Security

    try:
        scheme, _ = parse_address(address)
        get_address_host_port(address, strict=True)
    except ValueError:
        scheme = ""
    if scheme not in ("tcp", "tls"):
        raise OSError(f"--dask must be an address like tcp://host:8786, got {address!r}")
    if scheme == "tls" and not Security().get_connection_args("client")["ssl_context"]:
        raise OSError(f"{address} needs certificates in Dask's configuration")


class _Later:
    """A call that happens where its pickle is loaded.

    A task is then `pickle.loads` of bytes. The scheduler handles it without our modules, and a
    worker without them raises an error as from any task.
    """

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self._call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self._call


# --- on a worker ------------------------------------------------------------------------------


def _measure(pickled_run: bytes, expected: Mapping[str, Any]) -> runner.Row:
    """Measure a run on this worker, after checking that the worker fits."""
    from distributed import Reschedule, Status, get_worker

    worker = get_worker()
    if why := misfit(about_here(), worker.state.nthreads, expected):
        raise RuntimeError(f"worker {worker.address}: {why}")
    run: runner.Run = pickle.loads(pickled_run)
    runner.warm_alone()
    answer = run.measure()
    if worker.status in (
        Status.closing,
        Status.closed,
    ):  # a signal ended it, and some solvers return early
        raise Reschedule
    return answer


@functools.cache
def about_here() -> dict[str, Any]:
    """Describe what rows depend on in this process: software, source files, machine."""
    digest = hashlib.sha256()
    for package in _SOURCES:
        folder = Path(str(importlib.import_module(package).__file__)).parent
        for path in sorted(folder.rglob("*")):
            if path.suffix in (".py", ".toml"):
                digest.update(f"{package}/{path.relative_to(folder).as_posix()}\n".encode())
                digest.update(path.read_bytes())
    return {
        "software": record.software(*_COMPARED),
        "sources": digest.hexdigest(),
        "host": socket.gethostname(),
        "machine": record.machine(),
    }


def misfit(
    worker: Mapping[str, Any], n_threads: int, expected: Mapping[str, Any] | None = None
) -> str:
    """Return why a worker must not take part; empty if it may.

    Parameters
    ----------
    worker, expected : dict
        `about_here` of the worker, and of the sweep (default: of this process).
    n_threads : int
        Threads of the worker.
    """
    expected = expected or about_here()
    theirs, ours = worker["software"], expected["software"]
    reasons = [
        f"{name} {theirs.get(name) or 'is missing'}, here {ours[name]}"
        for name in ours
        if theirs.get(name) != ours[name]
    ]
    if not reasons and worker["sources"] != expected["sources"]:
        reasons.append(
            f"its files of {', '.join(_SOURCES)} differ from those here: update and restart it"
        )
    if n_threads != 1:
        reasons.append(f"{n_threads} threads, but runs are timed: start it with --nthreads 1")
    return "; ".join(reasons)


def _describe(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
