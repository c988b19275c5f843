"""Files that no save has written: forged with a right checksum, damaged, and changed while they are read."""

import copy
import json
from contextlib import contextmanager

import torch
from safetensors.torch import save
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from attention_sinks.cache.storage import FORMAT, VERSION, checksum_of, read_file

NOTHING = object()
"""In place of a value: the value is missing."""

WRONG = [
    *(None, True, False, -1, 0, 1, 3, 10**6, 10**8, 2**31, 2**53, 2**63, 10**30, 10**400),
    *(0.5, 1.0, -0.0, 1e308, float("inf"), float("-inf"), float("nan")),
    *("", "x", "0x", "0x1", "0xfffffffffffffffffffffffff", "0x" + "f" * 5000, "\ud800", "\0", "é" * 99, "{{ 1 / 0 }}"),
    *("streaming", "dense", "StreamingChat", "AttentionSinkKVCache"),
    *([], {}, [[]], [None], [1, 2, 3], ["x"], {"x": 1}, {"__class__": 1, "validate": 2}, [0] * 3000, NOTHING),
]


def nested(levels):
    """Lists in lists, as JSON text."""
    return "[" * levels + "]" * levels


def places(value, path=()):
    """The path of every value within `value`, itself included."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from places(item, (*path, key))


def replaced(state, path, value):
    """A copy of `state` with `value` at `path`."""
    if not path:
        return {} if value is NOTHING else copy.deepcopy(value)
    state = copy.deepcopy(state)
    parent = state
    for key in path[:-1]:
        parent = parent[key]
    if value is NOTHING:
        del parent[path[-1]]
    else:
        parent[path[-1]] = copy.deepcopy(value)
    return state


def forge(path, tensors, state, text=None):
    """Write a file with a right checksum; `text`, which need not be JSON, takes the place of `state`."""
    text = json.dumps(state, sort_keys=True) if text is None else text
    tensors = {name: tensor.contiguous().clone() for name, tensor in tensors.items()}
    metadata = {"format": FORMAT, "version": VERSION, "state": text, "sha256": checksum_of(text, tensors)}
    path.write_bytes(save(tensors, metadata))


def with_header(content, header):
    """The bytes of a file `content` with another header, which is text."""
    length = int.from_bytes(content[:8], "little")
    encoded = header.encode()
    return len(encoded).to_bytes(8, "little") + encoded + content[8 + length :]


def header_of(content):
    return content[8 : 8 + int.from_bytes(content[:8], "little")].decode()


class LargestTensor(TorchDispatchMode):
    """Notes the largest tensor made, those of `model` left out."""

    def __init__(self, model):
        super().__init__()
        self.known = {weight.untyped_storage().data_ptr() for weight in (*model.parameters(), *model.buffers())}
        self.nbytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for made in tree_iter(result):
            if isinstance(made, torch.Tensor) and made.untyped_storage().data_ptr() not in self.known:
                self.nbytes = max(self.nbytes, made.untyped_storage().nbytes())
        return result


class Attack:
    """Loads from one path with `load(path)`. Only a refusal or a harmless success is a good end.

    Attributes
    ----------
    loads : int
        How many files were loaded, of those that were tried.
    """

    def __init__(self, path, model, load, use):
        self.path, self.model, self.load, self.use = path, model, load, use
        self.good = path.read_bytes()
        self.tensors, self.state = read_file(path)
        self.tried = self.loads = 0

    def try_bytes(self, content, may_load=False):
        self.path.write_bytes(content)
        return self.try_file(may_load)

    def try_forged(self, tensors, state, may_load=True, use=True, text=None):
        forge(self.path, tensors, state, text)
        return self.try_file(may_load, use)

    def try_file(self, may_load, use=True):
        """Load the file and use what is loaded. Returns the message of a refusal."""
        self.tried += 1
        with LargestTensor(self.model) as largest:
            try:
                loaded = self.load(self.path)
            except (OSError, ValueError) as error:
                loaded = None
                message = str(error)
        assert largest.nbytes <= max(4096, self.path.stat().st_size)  # samples of weights are small
        if loaded is None:
            assert len(message) < 2000
            return message
        assert may_load, "a file that is not as it was saved was loaded"
        self.loads += 1
        if use:
            self.use(loaded)
        return None


@contextmanager
def after_the_header(monkeypatch, act):
    """Let `act` run in the middle of every read, once the header was read."""
    from attention_sinks.cache import storage

    read_header = storage.read_header

    def read_and_act(*args):
        header = read_header(*args)
        act()
        return header

    with monkeypatch.context() as patch:
        patch.setattr(storage, "read_header", read_and_act)
        yield
