"""Several processes, each with devices of its own, that train together as one program: `jaxnorm.training` says how."""

import logging
import os
import pickle
import socket
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxnorm._checks import check_size
from jaxnorm.training._termination import EXIT_STATUS

VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
"""What `connect` is told by in the environment: the coordinator, the number of processes, the number of this one."""

_INTERRUPTED = 130
_ALL_HERE = "all are here"
_RETRY_SECONDS = 0.1
_LINE_SECONDS = 5.0


@contextmanager
def connect(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    timeout: int = 60,
    heartbeat: int = 30,
) -> Iterator[None]:
    """Connects this process with the others of the run, for the time of a `with` block, by `jax.distributed`.

    It comes before anything asks jax for its devices, which are then those of all processes. What is not given is taken from the
    environment, `JAX_COORDINATOR_ADDRESS`, `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID`; where nothing is given there either, jax
    looks for what started the process (SLURM, Open MPI, Kubernetes, a TPU pod); where there is nothing, it is the only one.

    An exception in the block, of several processes, is printed, and the process left at once with status 1 (what `finally` and
    `with` in the block have to do is done before): it would else wait for the others, and they for it. The others end when they
    next need this one, or after `heartbeat` seconds.

    Args:
      coordinator: address of process 0 with a port that is free there, `HOST:PORT`; the same in all processes.
      num_processes: number of processes.
      process_id: number of this process, from 0.
      timeout: seconds in which all processes must have come.
      heartbeat: seconds without a sign of life after which a process counts as dead, and all others end.

    Yields:
      None.

    Raises:
      ValueError: if only some of the three are given, coordinator is no address, a variable no integer, or process_id is not in
        `[0, num_processes)`.
      ConnectionError: if processes do not come in time, or the coordinator cannot be reached; in all that have come, if two have
        the same process_id or another num_processes.
      RuntimeError: by jax, if devices were asked for before.

    Example:
      >>> import jax
      >>> from jaxnorm.training import connect
      >>> with connect("127.0.0.1:1234", num_processes=1, process_id=0):
      ...     jax.process_index(), jax.process_count()
      (0, 1)
    """
    check_size("timeout", timeout)
    check_size("heartbeat", heartbeat)
    place = place_among(coordinator, num_processes, process_id)
    end = time.monotonic() + timeout
    alone = place is not None and place[1] == 1
    if place is not None and not alone:
        _meet(*place, end, timeout)
    if alone or not _initialize(place, max(1, round(end - time.monotonic())), heartbeat):
        yield
        return
    try:
        yield
    except SystemExit as error:
        if error.code not in (None, 0, EXIT_STATUS):  # all processes leave together by the last, as `fit` does after a SIGTERM
            _leave(error)
        jax.distributed.shutdown()
        raise
    except BaseException as error:
        _leave(error)
    jax.distributed.shutdown()


def gather(value: Any) -> list[Any]:
    """Returns what the processes call it with, in their order, in all of them; of any type that can be pickled."""
    if jax.process_count() == 1:
        return [value]
    data = np.frombuffer(pickle.dumps(value), np.uint8)
    sizes = multihost_utils.process_allgather(np.array(len(data), np.int32))
    rows = multihost_utils.process_allgather(np.pad(data, (0, int(sizes.max()) - len(data))))
    return [pickle.loads(row[:size].tobytes()) for row, size in zip(np.asarray(rows), sizes, strict=True)]


def place_among(coordinator: str | None, num_processes: int | None, process_id: int | None) -> tuple[str, int, int] | None:
    """Returns address, number of processes and own number, by arguments or the environment; None where none is given."""
    names = ("coordinator", "num_processes", "process_id")
    values: list[Any] = [coordinator, num_processes, process_id]
    for number, variable in enumerate(VARIABLES):
        if values[number] is None and (text := os.environ.get(variable)):
            if number and not text.isdecimal():
                raise ValueError(f"the variable {variable} must be an integer of at least 0, got {text!r}")
            values[number] = int(text) if number else text
    if values == [None] * 3:
        return None
    if None in values:
        missing = values.index(None)
        raise ValueError(
            "coordinator, num_processes and process_id must be given all three, or none, "
            f"got {names[missing]}=None and no variable {VARIABLES[missing]}"
        )
    address, count, own = values
    host, _, port = str(address).rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise ValueError(f"coordinator must be an address with a port, HOST:PORT, got {address!r}")
    check_size("num_processes", count)
    check_size("process_id", own, low=0)
    if own >= count:
        raise ValueError(f"process_id must be below num_processes, {count}, got {own}")
    return address, count, own


def _initialize(place: tuple[str, int, int] | None, timeout: int, heartbeat: int) -> bool:
    """Starts jax's own service, and returns whether there are several processes."""
    options: dict[str, Any] = {"initialization_timeout": timeout, "heartbeat_timeout_seconds": heartbeat}
    try:
        if place is not None:
            jax.distributed.initialize(*place, cluster_detection_method="deactivate", **options)
        else:
            jax.distributed.initialize(**options)
    except ValueError as error:
        if "coordinator_address should be defined" in str(error):  # which jax says where nothing started the process
            return False
        raise
    return True


def _leave(error: BaseException) -> NoReturn:
    """Ends the process at once; what jax does at a regular end waits for all the others."""
    status: Any = _INTERRUPTED if isinstance(error, KeyboardInterrupt) else 1
    if not isinstance(error, SystemExit):
        traceback.print_exception(error)
    elif isinstance(error.code, int):
        status = error.code
    else:
        print(error.code, file=sys.stderr)
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _meet(address: str, count: int, own: int, end: float, timeout: float) -> None:
    """Returns when all processes have come, and raises in all of them if they do not fit together.

    jax's own service ends a process in place of an exception, without saying which other one is missing.
    """
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    wrong = _receive(host, int(port), count, end, timeout) if own == 0 else _report(host, int(port), count, own, end, timeout)
    if wrong:
        raise ConnectionError(wrong)


def _receive(host: str, port: int, count: int, end: float, timeout: float) -> str:
    """Waits for the other processes on the coordinator's port, tells them whether all is well, and returns what is wrong."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        server = socket.create_server(("", port), family=family)
    except OSError as error:
        return (
            f"coordinator {host}:{port} cannot be opened by process 0: {error.strerror}; it must be this host, and the port free"
        )
    present, connections, wrong = {0}, [], ""
    with server, ExitStack() as stack:
        while not wrong and (missing := sorted(set(range(count)) - present)):
            server.settimeout(max(end - time.monotonic(), _RETRY_SECONDS))
            try:
                connection = stack.enter_context(server.accept()[0])
            except TimeoutError:
                named = ", ".join(map(str, missing))
                wrong = (
                    f"of {count} processes, these have not come to {host}:{port} within {timeout} s: {named}; see what they say"
                )
                break
            connection.settimeout(_LINE_SECONDS)
            try:
                other, others = map(int, connection.makefile().readline().split())
            except (OSError, ValueError):  # a stranger
                continue
            connections.append(connection)
            if others != count:
                wrong = (
                    f"num_processes must be the same in all processes, got {count} in process 0 and {others} in process {other}"
                )
            elif other in present:
                wrong = f"process_id must be another one in each process, got {other} twice"
            present.add(other)
        for connection in connections:
            with suppress(OSError):
                connection.sendall(f"{wrong or _ALL_HERE}\n".encode())
    return wrong


def _report(host: str, port: int, count: int, own: int, end: float, timeout: float) -> str:
    """Tells process 0 that this one is there, waits for the others, and returns what is wrong."""
    while True:
        try:
            with socket.create_connection((host, port), max(end - time.monotonic(), _RETRY_SECONDS)) as connection:
                connection.sendall(f"{own} {count}\n".encode())
                answer = connection.makefile().readline().strip()
            if answer:
                return "" if answer == _ALL_HERE else answer
            why: Any = "it is not process 0 of this run that answers"
        except OSError as error:
            why = error.strerror or error
        if time.monotonic() > end:
            return (
                f"coordinator {host}:{port} could not be reached by process {own} within {timeout} s: {why}; is process 0 "
                "running there, with the same address, and does a firewall let the port through?"
            )
        time.sleep(_RETRY_SECONDS)
