"""What the tests of the chat share: Ctrl-C that raises, and models that say what they are told."""

import signal

import pytest
import torch

from attention_sinks.chat import decoding


@pytest.fixture(autouse=True)
def interruptible():
    """Ctrl-C raises, also where the tests run in the background of a shell, which has it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def says(monkeypatch):
    """`says(chat, *texts)`: what each conversation of the chat answers next, whatever the model would say."""
    scripts, chosen = {}, decoding._choose

    def choose(scores, *options):
        if not scripts:
            return chosen(scores, *options)
        ends = scripts["ends"]
        tokens = [next(script, ends) for script in scripts["rows"]]
        return torch.tensor(tokens, dtype=torch.long, device=scores.device)

    def tell(chat, *texts):
        ids = [chat.tokenizer(text, add_special_tokens=False).input_ids for text in texts]
        scripts.update(rows=[iter(row) for row in ids], ends=chat.tokenizer.eos_token_id)

    monkeypatch.setattr(decoding, "_choose", choose)
    return tell
