"""The processes that share a model: started together, and none of them outlives another."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

import torch
import torch.distributed

from .following import Inbox, follow
from .leader import Leader

HERE = "127.0.0.1"

LOADING = timedelta(hours=2)
"""How long processes wait for one another, since one may read its weights much faster than another."""

GRACE_SECONDS = 10.0
"""So long the others have to end by themselves."""


@contextlib.contextmanager
def shared_model(count: int, load: Callable[[], Any]) -> Iterator[tuple[Any, Leader]]:
    """Load a model by `count` processes, each its shard; give this one's, and what leads the others.

    When one of the others ends early, this process ends as well, with exit code 1 and the reason on stderr. When this
    one ends, in whatever way, the others end.

    Parameters
    ----------
    count : int
        How many processes share the model, this one included.
    load : callable
        Loads the model, with attention sinks injected. It is called in every process, so it can be pickled.
    """
    store = _store(count)
    processes, connections = _started(count, load, store.port)
    leaving = threading.Event()
    threading.Thread(target=_watch, args=(processes, leaving), name="attention_sinks-watch", daemon=True).start()
    try:
        _join(0, count, store)
        model, leader = load(), Leader(connections)
        leader.lead(model)
        try:
            yield model, leader
        finally:
            leaving.set()
            leader.dismiss()
            torch.distributed.destroy_process_group()  # all do so at once
            for process in processes:
                process.join(GRACE_SECONDS)
    finally:
        leaving.set()
        for connection in connections:
            connection.close()
        for process in processes:
            process.join(GRACE_SECONDS)
            process.kill()


def _store(count: int) -> torch.distributed.TCPStore:
    """Return the store by which the processes meet. It listens on this machine alone, at a port that is free."""
    listener = socket.create_server((HERE, 0))
    port = listener.getsockname()[1]
    return torch.distributed.TCPStore(
        HERE, port, count, True, timeout=LOADING, wait_for_workers=False, master_listen_fd=listener.detach()
    )


def _started(count: int, load: Callable[[], Any], port: int) -> tuple[Sequence[BaseProcess], Sequence[Connection]]:
    """Start the processes that follow, and return them with a connection to each."""
    context = multiprocessing.get_context("spawn")
    processes, connections = [], []
    for rank in range(1, count):
        here, there = context.Pipe()
        process = context.Process(target=_follow, args=(rank, count, load, port, there), daemon=True)
        process.start()
        there.close()
        processes.append(process)
        connections.append(here)
    return processes, connections


def _follow(rank: int, count: int, load: Callable[[], Any], port: int, connection: Connection) -> None:
    """Be one of the processes that follow. Ctrl-C, and what ends a service, are for the first one, which ends this."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    for package in ("attention_sinks", "transformers"):  # what they warn of, the first process says, too
        logging.getLogger(package).setLevel(logging.ERROR)
    inbox = Inbox(connection, _name(rank, count))
    _join(rank, count, torch.distributed.TCPStore(HERE, port, count, False, timeout=LOADING))
    follow(load, inbox)
    torch.distributed.destroy_process_group()


def _join(rank: int, count: int, store: torch.distributed.Store) -> None:
    """Meet the other processes. Each has an accelerator of its own, or a share of the cores."""
    os.environ["LOCAL_RANK"] = str(rank)  # by which Transformers finds the accelerator of this process
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    device = torch.device("cpu") if accelerator is None else torch.device(accelerator.type, rank)
    if accelerator is None:
        if "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(max(1, torch.get_num_threads() // count))
    else:
        torch.accelerator.set_device_index(rank)
    if sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # they are all on this machine
    backend = torch.distributed.get_default_backend_for_device(device)
    torch.distributed.init_process_group(
        backend,
        store=store,
        rank=rank,
        world_size=count,
        timeout=LOADING,
        device_id=device if backend == "nccl" else None,
    )


def _watch(processes: Sequence[BaseProcess], leaving: threading.Event) -> None:
    """End this process when one of the others has ended before it was to: the model lacks a part then."""
    ended = wait([process.sentinel for process in processes])
    if leaving.is_set():
        return
    for rank, process in enumerate(processes, start=1):
        if process.sentinel in ended:
            process.join(GRACE_SECONDS)  # a process that is ending has no exit code yet
            print(f"{_name(rank, len(processes) + 1)}: {_how(process.exitcode)}.", file=sys.stderr, flush=True)
    os._exit(1)


def _name(rank: int, count: int) -> str:
    return f"attention-sinks: error: process {rank + 1} of {count}, which share the model"


def _how(code: int | None) -> str:
    """Say in words how a process has ended."""
    how = f"by {signal.Signals(-code).name}" if code is not None and code < 0 else f"with exit code {code}"
    return f"it has ended {how}, and the others end with it; start the server again"
