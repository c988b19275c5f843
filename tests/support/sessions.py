"""Stores of small values: a tensor and what JSON can hold."""

from dataclasses import dataclass, field

import torch

from attention_sinks.sessions.store import SessionStore


@dataclass
class Talk:
    """What a test keeps in a session."""

    numbers: torch.Tensor
    said: dict = field(default_factory=dict)

    def __eq__(self, other):
        if not isinstance(other, Talk):
            return NotImplemented
        same = self.numbers.dtype == other.numbers.dtype and torch.equal(self.numbers, other.numbers)
        return same and self.said == other.said


def talk(number, size=3):
    """The same value at every call, another for every number."""
    return Talk(torch.full((size,), float(number)), {"number": number, "text": "é" * (number % 5)})


def talks(folder, **options):
    """A store of talks, each of which has as many bytes as its numbers."""
    return SessionStore(
        folder,
        to_file=lambda value: ({"numbers": value.numbers}, value.said),
        from_file=lambda tensors, state: Talk(tensors["numbers"], state),
        size_of=lambda value: value.numbers.nbytes,
        **options,
    )


def save(store, name, value):
    """One turn."""
    with store.open(name) as session:
        session.save(value)


def load(store, name):
    """What a session holds."""
    with store.open(name) as session:
        return session.value


def names(store):
    return {info.name for info in store.list()}
