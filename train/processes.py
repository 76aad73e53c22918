"""Several processes of one run: joining them, and ending all when one is gone.

jax notices late that a process is gone, by its heartbeats, and ends with a C++ stack and SIGABRT. So each process holds
a connection to process 0, which the system closes when either end dies; keep-alive probes find a machine that is no
longer there. Who notices tells the others and ends, with one sentence.
"""

import contextlib
import json
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator

import jax
import numpy as np
from jax.experimental import multihost_utils

from train.errors import UserError
from train.stop import say

logger = logging.getLogger('train')

JOINING = 30.0  # seconds for the connections to be made
VERDICT = 8.0  # seconds in which a process that is gone is noticed, if an operation failed because of it
LENGTH = 512  # bytes in which process 0 tells its address


@contextlib.contextmanager
def joined(coordinator: str | None, count: int | None, index: int | None) -> Iterator[None]:
    """Joins the processes of a run and watches over them; without arguments jax finds them by itself.

    When one of them ends without leaving this context in good order, all end with the status 1.

    Raises:
      UserError: the arguments do not say who takes part.
    """
    # It would take SIGTERM for itself.
    jax.config.update('jax_enable_preemption_service', False)
    try:
        address = coordinator
        if coordinator and index:
            address = _relay(coordinator)
        jax.distributed.initialize(address, count, index)
    except ValueError as error:
        raise UserError(f'the processes cannot be joined: {error}') from error
    watch = _connect(coordinator.rpartition(':')[0] if coordinator else None)
    try:
        yield
    except (UserError, SystemExit):
        raise
    except Exception:
        # An operation between processes fails at once if one is gone; which, the watch says a moment later.
        time.sleep(VERDICT)
        raise
    watch.leave()


class Watch:
    """A process's connections to the others: process 0 has one to each, the others have one to it."""

    def __init__(self, peers: dict[int, socket.socket], count: int, end: Callable[[int], None] = os._exit) -> None:
        """peers: by the number of the process at the other end."""
        self._peers, self._count, self._end = peers, count, end
        self._lock = threading.Lock()
        for number, connection in peers.items():
            threading.Thread(target=self._listen, args=(number, connection), name='watch', daemon=True).start()

    def leave(self) -> None:
        """Tells the others that this process ends in good order."""
        self._tell('done')

    def _listen(self, number: int, connection: socket.socket) -> None:
        with contextlib.suppress(OSError):
            for line in connection.makefile():
                if line == 'done\n':
                    return
                number = int(line)
                break
        with self._lock:  # once
            self._tell(str(number))
            say(f'error: process {number} of {self._count} is gone; start all of them again')
            self._end(1)

    def _tell(self, word: str) -> None:
        for connection in self._peers.values():
            with contextlib.suppress(OSError):
                connection.sendall(f'{word}\n'.encode())


def _connect(host: str | None) -> Watch:
    """Connects every process with process 0, at `host` or, if None, at the name that its machine has."""
    count, index = jax.process_count(), jax.process_index()
    server = socket.create_server(('', 0), backlog=count) if index == 0 else None
    told = np.zeros(LENGTH, np.uint8)
    if server:
        where = {'host': host or socket.getfqdn(), 'port': server.getsockname()[1], 'key': secrets.token_hex(16)}
        text = json.dumps(where).encode()
        told[: len(text)] = np.frombuffer(text, np.uint8)
    where = json.loads(bytes(multihost_utils.broadcast_one_to_all(told)).rstrip(b'\0'))
    peers = _accept(server, where['key'], count) if server else _call(where, index)
    if len(peers) < (count - 1 if index == 0 else 1):
        logger.warning('process %d cannot watch over the others: what ends one is noticed late', index)
    for connection in peers.values():
        _keep_alive(connection)
    return Watch(peers, count)


def _accept(server: socket.socket, key: str, count: int) -> dict[int, socket.socket]:
    peers, until = {}, time.monotonic() + JOINING
    with server, contextlib.suppress(TimeoutError):
        while len(peers) < count - 1:
            server.settimeout(max(0.01, until - time.monotonic()))
            connection, _ = server.accept()
            connection.settimeout(JOINING)
            with contextlib.suppress(OSError, ValueError):
                given, number = connection.makefile().readline().split()
                if secrets.compare_digest(given, key):
                    peers[int(number)] = connection
    return peers


def _call(where: dict[str, str], index: int) -> dict[int, socket.socket]:
    with contextlib.suppress(OSError):
        connection = socket.create_connection((where['host'], where['port']), timeout=JOINING)
        connection.sendall(f'{where["key"]} {index}\n'.encode())
        return {0: connection}
    return {}


def _keep_alive(connection: socket.socket) -> None:
    """A machine that is no longer there is noticed after 8 seconds."""
    connection.settimeout(None)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (('TCP_KEEPIDLE', 2), ('TCP_KEEPINTVL', 2), ('TCP_KEEPCNT', 3)):
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _relay(coordinator: str) -> str:
    """An address here that stands for that of process 0, and stays open when process 0 is gone.

    jax ends a process within a millisecond, by SIGABRT, when this connection breaks: before the watch can say why.
    """
    host, _, port = coordinator.rpartition(':')
    server = socket.create_server(('127.0.0.1', 0))
    threading.Thread(target=_serve, args=(server, host, int(port)), name='relay', daemon=True).start()
    return f'127.0.0.1:{server.getsockname()[1]}'


def _serve(server: socket.socket, host: str, port: int) -> None:
    while True:
        near, _ = server.accept()
        try:
            far = socket.create_connection((host.strip('[]'), port))
        except OSError:  # process 0 is not there yet; jax tries again
            near.close()
            continue
        for source, sink in ((near, far), (far, near)):
            threading.Thread(target=_pass_on, args=(source, sink), name='relay', daemon=True).start()


def _pass_on(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            sink.sendall(data)
