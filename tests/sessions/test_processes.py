"""Several processes and threads on one folder, and processes that are killed."""

import os
import random
import signal
import time
import traceback
from itertools import count

import pytest

from attention_sinks.sessions.store import SessionInUseError
from support.helpers import THREADS, in_parallel
from support.sessions import load, save, talk, talks

pytestmark = pytest.mark.skipif(os.name != "posix", reason="processes are forked, and killed by a signal")

SIZE = 100_000  # numbers, so that a file takes some time to write


def in_process(act):
    """Run `act` in a process of its own, and return that."""
    child = os.fork()
    if child == 0:
        try:
            act()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    return child


def exit_code(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def count_up(store, name, rounds):
    """Add 1 to the number in a session, so many times, and do not give way to others."""
    for _ in range(rounds):
        while True:
            try:
                with store.open(name) as session:
                    number = 0 if session.value is None else session.value.said["number"]
                    assert number == 0 or session.value == talk(number, SIZE // 100)
                    session.save(talk(number + 1, SIZE // 100))
                break
            except SessionInUseError:
                time.sleep(0.001)


@pytest.mark.parametrize("kind, rounds", [("", 12), ("dir::file://", 5)], ids=["kernel locks", "leases"])
def test_processes_on_one_folder_lose_no_turn(tmp_path, kind, rounds):
    """They begin with values in memory, which others make old."""
    store = talks(f"{kind}{tmp_path}")
    for name in "ab":
        save(store, name, talk(1, SIZE // 100))
    workers = [in_process(lambda: [count_up(store, name, rounds) for name in "abab"]) for _ in range(3)]
    assert [exit_code(worker) for worker in workers] == [0, 0, 0]
    for name in "ab":
        assert load(store, name) == talk(1 + 3 * 2 * rounds, SIZE // 100)


@pytest.mark.parametrize("kind", ["", "memory://"], ids=["kernel locks", "leases"])
def test_threads_lose_no_turn(tmp_path, kind):
    """Two stores, whose memory has room for one value, serve all threads."""
    stores = [talks(f"{kind}{tmp_path}", max_bytes=5000) for _ in range(2)]
    rounds = 10

    def work(number):
        for name in random.Random(number).sample("abc", 3):
            count_up(stores[number % 2], name, rounds)
            stores[number % 2].list()

    in_parallel(work)
    for name in "abc":
        assert load(stores[0], name) == talk(THREADS * rounds, SIZE // 100)


@pytest.mark.parametrize("seed", range(8))
def test_a_process_that_is_killed_leaves_what_it_saved_last(tmp_path, seed):
    """It tells by a pipe of each save that has returned. The next save may be on disk, but nothing else."""
    told, tell = os.pipe()
    store = talks(tmp_path)

    def save_until_killed():
        for number in count(1):
            save(store, "a", talk(number, SIZE))
            os.write(tell, b".")

    child = in_process(save_until_killed)
    os.close(tell)
    saved = len(os.read(told, 1))
    time.sleep(random.Random(seed).uniform(0, 0.1))
    os.kill(child, signal.SIGKILL)
    assert exit_code(child) == -signal.SIGKILL
    with open(told, "rb") as pipe:
        saved += len(pipe.read())
    with store.open("a") as session:  # at once: the lock went with the process
        number = session.value.said["number"]
        assert number in (saved, saved + 1) and session.value == talk(number, SIZE)
        session.save(talk(0))
    left = [name for name in os.listdir(tmp_path) if not name.endswith((".safetensors", ".lock"))]
    assert left == []


@pytest.mark.parametrize("seed", range(3))
def test_a_process_that_is_killed_while_others_go_on(tmp_path, seed):
    store = talks(tmp_path)
    victim = in_process(lambda: count_up(store, "a", 10**6))
    other = in_process(lambda: count_up(store, "a", 40))
    time.sleep(random.Random(seed).uniform(0.02, 0.1))
    os.kill(victim, signal.SIGKILL)
    assert exit_code(victim) == -signal.SIGKILL and exit_code(other) == 0
    number = load(store, "a").said["number"]
    assert number >= 40 and load(store, "a") == talk(number, SIZE // 100)
