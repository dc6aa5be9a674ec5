"""Executes runs on a Dask cluster whose workers compute as this process would.

This process keeps the only writer of rows. The scheduler hands the run of a worker that died to
another one. A worker with other software, or with more than one thread, is refused by name, and
stops the sweep if it comes later; the same command then goes on.
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
LOOK_EVERY_S = 1.0  # for workers that came or went
_SOURCES = ("hypsolve", "instances", "experiments")
_COMPARED = (*record.COMPUTING, "distributed")


@dataclass(slots=True)
class Cluster:
    """The workers of a scheduler; open one with `connected`."""

    address: str
    client: "Client"
    workers: set[str] = field(default_factory=set)  # addresses of those that passed
    max_workers: int = 0  # of them at one time
    machines: dict[str, dict[str, Any]] = field(default_factory=dict)  # by host
    looked_s: float = 0.0

    @property
    def jobs(self) -> int:
        """How many runs at a time: one per worker."""
        return max(1, len(self.workers))

    def where(self) -> dict[str, Any]:
        """How many workers there were at most so far, and on what hosts; no names."""
        hosts = list(self.machines.values())
        version = about_here()["software"]["distributed"]
        return {
            "cluster": {"distributed": version, "workers": self.max_workers, "hosts": hosts}
        }

    def execute(
        self, runs: Sequence[runner.Run], *, started: Callable[[runner.Run], None]
    ) -> runner.Rows:
        """Yield each run with its row, as they end; see `runner.Workers`.

        Closing the iterator cancels what has not begun; a worker in the middle of a run goes on
        until that ends, and its answer is dropped.
        """
        waiting = deque(runs)
        running: dict[Any, tuple[runner.Run, Future, str]] = {}  # and where it was sent
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
        """See which workers are there, at most every LOOK_EVERY_S, and check the new ones.

        Raises
        ------
        RuntimeError
            If the scheduler is gone; or naming workers that must not take part, and why.
        """
        if self.workers and time.monotonic() < self.looked_s + LOOK_EVERY_S:
            return
        try:
            there = self.client.nthreads()
            new = sorted(there.keys() - self.workers)
            answers = self._ask(new) if new else {}
            if any(isinstance(answer, OSError) for answer in answers.values()):
                there = self.client.nthreads()  # some may have gone meanwhile
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
        """What workers say about themselves, or the exception that came instead."""
        question = pickle.dumps(_Later(about_here))
        return self.client.run(pickle.loads, question, workers=addresses, on_error="return")

    def _submit(self, run: runner.Run, address: str) -> "Future":
        # loaded by `_measure`, which first makes sure that the worker fits
        task = pickle.dumps(_Later(_measure, pickle.dumps(run), about_here()))
        return self.client.submit(
            pickle.loads,
            task,
            key=f"run-{uuid.uuid4()}",
            workers=[address],  # left alone, the scheduler queues short runs behind long ones
            allow_other_workers=True,  # should this one die
        )

    def _answer(self, run: runner.Run, future: "Future") -> runner.Row | None:
        """What a run that ended gives; None if that was lost with its worker, for now."""
        from distributed import KilledWorker

        try:
            return future.result(timeout=LOOK_EVERY_S)
        except Exception as error:
            if future.status != "error":
                if isinstance(error, TimeoutError):  # the scheduler has it computed again
                    return None
                raise self._lost() from None
            if isinstance(error, KilledWorker):
                n_died = error.allowed_failures + 1
                raise RuntimeError(f"{run}: {n_died} workers died of it") from None
            self.looked_s = 0.0
            self.look()  # a worker that came meanwhile and does not fit
            raise RuntimeError(f"{run}: {_describe(error)}") from error

    def _lost(self) -> RuntimeError:
        return RuntimeError(
            f"the scheduler at {self.address} is lost: once back, the same command goes on"
        )


@contextlib.contextmanager
def connected(address: str) -> Iterator[Cluster]:
    """Connect to a scheduler, wait for its first worker, check all that are there.

    Raises
    ------
    OSError
        If no scheduler answers, or naming the workers that do not fit.
    """
    from distributed import Client

    _check_address(address)
    for name in ("distributed", "distributed.client", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # what matters is said here
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
    """Ask who is there: a client waits forever for a port that takes calls and says nothing."""
    from distributed.core import rpc
    from distributed.security import Security

    arguments = Security().get_connection_args("client")
    async with asyncio.timeout(CONNECT_S), rpc(address, connection_args=arguments) as there:
        await there.identity()


def _check_address(address: str) -> None:
    """A client that stumbles over its address takes seconds to go away again."""
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

    A task is then `pickle.loads` of bytes: the scheduler can take it without our modules, and a
    worker that lacks them says so as of any task that raises.
    """

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self._call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self._call


# --- on a worker ------------------------------------------------------------------------------


def _measure(pickled_run: bytes, expected: Mapping[str, Any]) -> runner.Row:
    """Measure a run on this worker, if it fits."""
    from distributed import Reschedule, Status, get_worker

    worker = get_worker()
    if why := misfit(about_here(), worker.state.nthreads, expected):
        raise RuntimeError(f"worker {worker.address}: {why}")
    run: runner.Run = pickle.loads(pickled_run)
    runner.warm_alone()
    answer = run.measure()
    if worker.status in (Status.closing, Status.closed):  # by a signal that some solvers heed
        raise Reschedule
    return answer


@functools.cache
def about_here() -> dict[str, Any]:
    """What rows depend on in this process: software, source files, machine."""
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
    """Why a worker must not take part; empty if it may.

    Parameters
    ----------
    worker, expected : dict
        `about_here` of the worker and of the sweep; default: of this process.
    n_threads : int
        Of the worker.
    """
    expected = expected or about_here()
    theirs, ours = worker["software"], expected["software"]
    reasons = [
        f"{name} {theirs.get(name) or 'is missing'}, here {ours[name]}"
        for name in ours
        if theirs.get(name) != ours[name]
    ]
    if not reasons and worker["sources"] != expected["sources"]:
        reasons.append(f"other files of {', '.join(_SOURCES)} than here: update and restart it")
    if n_threads != 1:
        reasons.append(f"{n_threads} threads, but runs are timed: start it with --nthreads 1")
    return "; ".join(reasons)


def _describe(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
