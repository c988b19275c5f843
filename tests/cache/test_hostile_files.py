"""Any bytes may stand at the path of a saved file: `load` gives what was saved, or ValueError or OSError, and soon."""

import json
import os
import random
import threading
import time
import tracemalloc
from dataclasses import replace

import pytest
import torch
from transformers import GenerationConfig

from attention_sinks import AttentionSinkKVCache, StreamingChat, inject_attention_sinks
from support.helpers import S, W, random_ids, refused, state_of, stream, tiny_llama
from support.hostile import WRONG, Attack, after_the_header, forge, header_of, nested, places, replaced, with_header
from support.toy_tokenizers import CHATML, word_tokenizer

SECONDS = 5  # for one file, on a busy machine; a load takes some milliseconds


def attack_on_cache(path):
    model = inject_attention_sinks(tiny_llama(), S, W)
    _, cache = stream(model, random_ids(3, 40), [20, 1, 19])
    cache.save(path)

    def use(loaded):
        if rows := max(0, loaded.batch_size):
            stream(model, random_ids(rows, 3), [1, 2], loaded)
            loaded.crop(-1)

    return Attack(path, model, lambda path: AttentionSinkKVCache.load(path, model), use)


def attack_on_chat(path):
    model, tokenizer = inject_attention_sinks(tiny_llama(), S, W), word_tokenizer()
    config = GenerationConfig(max_new_tokens=3, eos_token_id=[1, 2], suppress_tokens=[0, 3])
    chat = StreamingChat(model, tokenizer, system="w1 w2", generation_config=config, chat_template=CHATML)
    for _ in range(4):
        list(chat.send(["w3 w4", "w5", "w6 w7"]))
    chat.save(path)
    rows = len(chat._stream.rows)

    def use(loaded):
        loaded.ask(["w6"] * (rows if loaded._stream.rows is None else len(loaded._stream.rows)))

    return Attack(path, model, lambda path: StreamingChat.load(path, model, tokenizer), use)


TOOL = {"type": "function", "function": {"name": "w9", "parameters": {"type": "object", "properties": {}}}}
CALL = {"type": "function", "id": "call00000", "function": {"name": "w9", "arguments": {"w8": "w7"}}}
WITH_TOOLS = (
    "{% if tools %}{{ tools[0]['function']['name'] }} {% endif %}{% for m in messages %}<start> {{ m['role'] }} "
    "{{ m['content'] }}{% for call in m['tool_calls'] or [] %} {{ call['function'] | tojson }}{% endfor %} <end> "
    "{% endfor %}{% if add_generation_prompt %}<start> assistant {% endif %}"
)


def attack_on_chat_with_tools(path):
    model, tokenizer = inject_attention_sinks(tiny_llama(), S, W), word_tokenizer(WITH_TOOLS)
    config = GenerationConfig(max_new_tokens=3, eos_token_id=[1, 2], suppress_tokens=[0, 3])
    options = {"tools": [TOOL], "keep_transcript": True, "chat_template_kwargs": {"w": 1}}
    chat = StreamingChat(model, tokenizer, generation_config=config, **options)
    chat.ask(["w3 w4", "w5", "w6"])
    chat._stream.rows = tuple(replace(row, tool_calls=(CALL,)) for row in chat._stream.rows)
    chat.save(path)

    def use(loaded):
        rows = loaded._stream.rows or ()
        if rows and all(row.tool_calls for row in rows):
            loaded.ask([[{"role": "tool", "name": "w9", "content": "w5"}]] * len(rows))
        loaded.ask(["w6"] * (len(rows) or 3))
        assert isinstance(loaded.transcript, (list, type(None))) and isinstance(loaded.turns_in_window, list)

    return Attack(path, model, lambda path: StreamingChat.load(path, model, tokenizer), use)


@pytest.fixture(
    params=[attack_on_cache, attack_on_chat, attack_on_chat_with_tools], ids=["cache", "chat", "chat_with_tools"]
)
def attack(request, tmp_path):
    return request.param(tmp_path / "file")


# ---- altered bytes, without a new checksum


def test_altered_bits(attack):
    """Each bit of the header's length, and as many of the rest as time allows."""
    chance, header = random.Random(0), 8 + len(header_of(attack.good))
    bits = [*range(64), *chance.sample(range(64, 8 * header), 800)]
    bits += chance.sample(range(8 * header, 8 * len(attack.good)), 200)
    for bit in bits:
        content = bytearray(attack.good)
        content[bit // 8] ^= 1 << bit % 8
        attack.try_bytes(content)


def test_altered_bytes(attack):
    """Bytes that JSON may pass over: blanks in place of the padding, other digits, quotation marks."""
    chance, header = random.Random(1), 8 + len(header_of(attack.good))
    padding = len(header_of(attack.good)) - len(header_of(attack.good).rstrip(" "))
    for place in [*chance.sample(range(header), 100), *range(header - padding, header)]:
        for byte in b' \t\n\r\0"0}':
            content = bytearray(attack.good)
            content[place] = byte
            if content != attack.good:
                attack.try_bytes(content)


def test_another_length(attack):
    """Every kind of truncation, and more bytes than there should be."""
    size, chance = len(attack.good), random.Random(2)
    for length in {*range(64), *range(size - 64, size), *chance.sample(range(size), 300)}:
        attack.try_bytes(attack.good[:length])
    for more in (b"\0", b" ", attack.good, bytes(100_000)):
        attack.try_bytes(attack.good + more)
        attack.try_bytes(more + attack.good)
    attack.try_bytes(b"")


def test_parts_in_another_order(attack):
    chance = random.Random(3)
    for _ in range(200):
        content = bytearray(attack.good)
        length = chance.choice([1, 8, 100, 1000])
        first, second = (chance.randrange(len(content) - length) for _ in range(2))
        content[first : first + length], content[second : second + length] = (
            content[second : second + length],
            content[first : first + length],
        )
        if content != attack.good:
            attack.try_bytes(content)


HEADERS = {
    "nothing": lambda text: "",
    "blanks": lambda text: " " * 80,
    "a list": lambda text: "[]",
    "a number": lambda text: "1" * 5000,
    "nested": lambda text: nested(200_000),
    "nested in the metadata": lambda text: text.replace('"sha256"', f'"x":{nested(200_000)},"sha256"'),
    "nested objects": lambda text: '{"a":' * 100_000 + "1" + "}" * 100_000,
    "a name twice": lambda text: text.replace("{", '{"layers.0.0":{"dtype":"F32","shape":[],"data_offsets":[0,0]},', 1),
    "metadata twice": lambda text: text.replace("{", '{"__metadata__":{},', 1),
    "NaN": lambda text: text.replace('"shape":[', '"shape":[NaN,', 1),
    "infinity": lambda text: text.replace('"shape":[', '"shape":[1e999,', 1),
    "a huge shape": lambda text: text.replace('"shape":[', '"shape":[99999999999999999999,', 1),
    "an empty, huge shape": lambda text: text.replace('"shape":[', '"shape":[0,99999999999999999999,', 1),
    "another dtype": lambda text: text.replace('"F32"', '"I32"', 1),
    "an unknown dtype": lambda text: text.replace('"F32"', '"F31"'),
    "a negative offset": lambda text: text.replace('"data_offsets":[', '"data_offsets":[-1', 1),
    "more metadata": lambda text: text.replace('"sha256"', '"more":"","sha256"'),
    "metadata of another type": lambda text: text.replace('"sha256"', '"sha256":1,"sha255"'),
    "half a character": lambda text: text.replace('"sha256":"', '"sha256":"\\ud800'),
    "blanks before it": lambda text: " " + text,
    "another end": lambda text: text + "\n",
}


@pytest.mark.parametrize("header", HEADERS)
def test_other_headers(attack, header):
    changed = HEADERS[header](header_of(attack.good))
    assert changed != header_of(attack.good)
    attack.try_bytes(with_header(attack.good, changed))


@pytest.mark.parametrize("length", [0, 1, 2**24 + 1, 2**31, 2**63 - 1, 2**64 - 1])
def test_a_header_of_impossible_length(attack, length):
    attack.try_bytes(length.to_bytes(8, "little") + attack.good[8:])


# ---- changed while it is read


def test_a_file_that_is_changed_while_it_is_read(attack, monkeypatch):
    """In place, which no `save` does. The tensors are long enough not to have been read along with the header."""
    size = len(attack.good)
    changes = {
        "truncated": lambda: os.truncate(attack.path, size - 1),
        "emptied": lambda: os.truncate(attack.path, 0),
        "overwritten": lambda: attack.path.write_bytes(bytes(size)),
        "grown": lambda: os.truncate(attack.path, 2 * size),
        "removed": lambda: attack.path.unlink(missing_ok=True),
        "replaced": lambda: (attack.path.with_name("new").write_bytes(b"new"), os.replace("new", attack.path)),
    }
    monkeypatch.chdir(attack.path.parent)
    for name, change in changes.items():
        attack.path.write_bytes(attack.good)
        with after_the_header(monkeypatch, change):
            try:
                attack.use(attack.load(attack.path))
            except ValueError as error:
                assert name in ("truncated", "emptied", "overwritten"), error


def test_a_file_that_is_always_being_overwritten(tmp_path, model):
    """What is loaded is one of the two or nothing, never a mixture."""
    path, contents, states = tmp_path / "file", [], []
    for seed in range(2):
        _, cache = stream(model, random_ids(8, 40, seed=seed))
        cache.save(path)
        contents.append(path.read_bytes())
        states.append(state_of(AttentionSinkKVCache.load(path, model)))
    assert len(contents[0]) == len(contents[1])
    done = threading.Event()

    def overwrite():
        while not done.is_set():
            for content in contents:
                with open(path, "r+b") as file:
                    file.write(content)
                    file.truncate(random.choice([len(content), len(content), 1000]))

    writer = threading.Thread(target=overwrite)
    writer.start()
    try:
        for _ in range(100):
            try:
                loaded = state_of(AttentionSinkKVCache.load(path, model))
            except ValueError:
                continue
            assert any(str(loaded) == str(state) for state in states)
    finally:
        done.set()
        writer.join()


# ---- hostile states with a right checksum


def test_every_field_of_the_state_replaced(attack):
    chance = random.Random(4)
    for place in places(attack.state):
        for value in chance.sample(WRONG, len(WRONG) if len(place) < 3 else 9):
            start = time.perf_counter()
            use = not {"generation_config", "tool_calls"}.intersection(place)  # which `send` may refuse
            attack.try_forged(attack.tensors, replaced(attack.state, place, value), use=use)
            assert time.perf_counter() - start < SECONDS, (place, value)
    assert attack.loads < attack.tried / 5


FREE = {"generation_config", "chat_template_kwargs", "tools", "tool_calls", "transcript"}
"""What may have any fields: those of Transformers, of a chat template or of a tool."""


def test_fields_that_are_unknown(attack):
    for place in places(attack.state):
        if isinstance(replaced(attack.state, place, {"mark": 1}), dict):
            changed = replaced(attack.state, (*place, "unknown"), 1) if is_object(attack.state, place) else None
            if changed is not None and not FREE.intersection(place):
                assert attack.try_forged(attack.tensors, changed, may_load=False)


def is_object(state, place):
    for key in place:
        state = state[key]
    return isinstance(state, dict)


@pytest.mark.parametrize("size", [10**6, 10**8, 2**31, 10**12], ids=str)
def test_a_window_that_the_file_does_not_hold(attack, size):
    """W stands in the settings and in the layers; both say the same."""
    state = json.loads(json.dumps(attack.state))
    cache = state.get("cache", state)
    cache["settings"][1] = size
    cache["layers"] = [[S, size, False, False] for _ in cache["layers"]]
    forge(attack.path, attack.tensors, state)
    tracemalloc.start()
    try:
        refused(ValueError, lambda: attack.load(attack.path), "path=")
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
    finally:
        tracemalloc.stop()
    attack.try_file(may_load=False)


TEXTS = {
    "nothing": "",
    "no JSON": "{",
    "a list": "[]",
    "null": "null",
    "NaN": "NaN",
    "nested": nested(100_000),
    "nested less": nested(900),
    "nested objects": '{"kind":' * 50_000 + "1" + "}" * 50_000,
    "a kind twice": '{"kind": "AttentionSinkKVCache", "kind": "AttentionSinkKVCache"}',
    "a kind of another type": '{"kind": ["AttentionSinkKVCache"]}',
    "a long number": '{"kind": ' + "1" * 100_000 + "}",
    "many lists": '{"kind": [' + "[]," * 200_000 + "[]]}",
}


@pytest.mark.parametrize("text", TEXTS)
def test_states_that_are_no_states(attack, text):
    assert attack.try_forged({}, None, may_load=False, text=TEXTS[text])


@pytest.mark.parametrize("levels", [30, 900, 100_000])
@pytest.mark.parametrize("field", ["config", "rope_parameters", "generation_config"])
def test_fields_that_are_nested_deeply(attack, field, levels):
    text = json.dumps(attack.state)
    changed = text.replace(f'"{field}": {{', f'"{field}": {{"deep": {nested(levels)}, ', 1)
    message = attack.try_forged(attack.tensors, None, use=False, text=changed)
    assert message or levels == 30 or changed == text


def tensor_attacks(tensors):
    """Tensors that are not those of the cache, by what is wrong with them."""
    names = sorted(tensors)
    first = tensors[names[0]]
    yield "none", {}
    for name in names:
        yield f"without {name}", {key: value for key, value in tensors.items() if key != name}
        yield f"{name} renamed", {f"{key}0" if key == name else key: value for key, value in tensors.items()}
        for dtype in (torch.float64, torch.float16, torch.bfloat16, torch.int32, torch.uint8):
            yield f"{name} as {dtype}", {**tensors, name: tensors[name].to(dtype)}
        for shape in shapes_near(tensors[name]):
            yield f"{name} as {tuple(shape.shape)}", {**tensors, name: shape}
    yield "one more", {**tensors, "layers.99.0": first}
    yield "another one", {**tensors, "x": torch.zeros(3)}
    yield "keys and sinks swapped", {**tensors, names[0]: tensors[names[2]], names[2]: tensors[names[0]]}
    for batch in (0, 1, 2):
        yield f"{batch} rows", {name: value[:batch] for name, value in tensors.items()}
    yield "more heads", {name: value.repeat(1, 2, 1, 1) for name, value in tensors.items()}
    yield "fewer heads", {name: value[:, :1] for name, value in tensors.items()}
    yield "smaller heads", {name: value[..., :8] for name, value in tensors.items()}
    yield "another layout", {name: value.transpose(1, 3) for name, value in tensors.items()}
    yield "all float64", {name: value.double() for name, value in tensors.items()}


def shapes_near(tensor):
    yield tensor.reshape(-1)
    yield tensor[None]
    yield tensor.new_zeros(())
    for dimension in range(4):
        yield tensor.transpose(dimension, (dimension + 1) % 4)
        yield tensor.narrow(dimension, 0, tensor.shape[dimension] - 1)
        yield tensor.narrow(dimension, 0, 0)
        yield torch.cat([tensor, tensor.narrow(dimension, 0, 1)], dim=dimension)


def test_other_tensors_than_the_cache_has(attack):
    for what, tensors in tensor_attacks(attack.tensors):
        message = attack.try_forged(tensors, attack.state, may_load=False)
        assert message and "path=" in message, what


def test_swapped_layers_without_a_new_checksum(attack):
    """The names are of the same length, so that nothing but the checksum can notice."""
    header = header_of(attack.good)
    swapped = (
        header.replace('"layers.0.', '"layers.X.').replace('"layers.1.', '"layers.0.').replace("layers.X", "layers.1")
    )
    assert swapped != header and "checksum" in attack.try_bytes(with_header(attack.good, swapped))


def test_random_states(attack):
    """Several fields at once, which may agree with each other."""
    chance = random.Random(5)
    for _ in range(250):
        state = attack.state
        for _ in range(chance.choice([2, 3, 5])):
            state = replaced(state, chance.choice(list(places(state))[1:]), chance.choice(WRONG))
            if not isinstance(state, dict):
                break
        attack.try_forged(attack.tensors, state, use=False)


@pytest.mark.parametrize(
    "template", ["{{ 1 / 0 }}", "{{ none.x.y }}", "{{ [1] + 1 }}", "{% for %}", "{{ messages[9] }}", "", "\ud800"]
)
def test_chat_templates_that_fail(tmp_path, template):
    attack = attack_on_chat(tmp_path / "file")
    assert attack.try_forged(attack.tensors, {**attack.state, "chat_template": template}, may_load=False)
