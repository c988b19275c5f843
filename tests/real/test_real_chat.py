"""A pretrained model holds a conversation many windows long."""

import pytest
import torch
from transformers import GenerationConfig

from attention_sinks import AutoModelForCausalLM, AutoTokenizer, StreamingChat, inject_attention_sinks
from support.helpers import stream
from support.pages import CHAT, run_block
from support.real_model import FOLDER, NEEDS_THE_MODEL

pytestmark = NEEDS_THE_MODEL

QUESTIONS = [
    "Hello! Who are you?",
    "Tell me a story about a fox.",
    "What happened next?",
    "What is the capital of Spain?",
]
SHORT = GenerationConfig(max_new_tokens=30)


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(FOLDER)


@pytest.fixture
def model():
    return inject_attention_sinks(AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32), 4, 40)


def test_answers_follow_from_the_conversation_as_the_template_writes_it(model, tokenizer):
    chat = StreamingChat(model, tokenizer, system="You are a pirate.", generation_config=SHORT)
    messages, answers = [{"role": "system", "content": "You are a pirate."}], []
    for question in QUESTIONS:
        messages.append({"role": "user", "content": question})
        before = tokenizer.apply_chat_template(messages, add_generation_prompt=True).input_ids
        answers.append("".join(chat.send(question)))
        messages.append({"role": "assistant", "content": answers[-1]})
        ids = before + tokenizer(answers[-1], add_special_tokens=False).input_ids
        logits, _ = stream(inject_attention_sinks(model, len(chat.template.prefix()), 40), torch.tensor([ids]))
        # The text of an answer need not be tokenized as it was written; nearly all of it is.
        steps, said = logits[0, len(before) - 1 : -1], torch.tensor(ids[len(before) :])
        assert (steps.argmax(-1) == said).float().mean() > 0.9
    assert len(ids) > 4 * 40
    assert "Madrid" in answers[-1]


def test_a_pinned_system_prompt_is_remembered_and_another_one_forgotten(model, tokenizer):
    inject_attention_sinks(model, 4, 90)
    system = "You are Captain Redbeard, a pirate. You always say who you are."
    questions = [
        "Write two sentences about bread.",
        "What is a prime number?",
        "What colour is the sky?",
        "Who are you?",
    ]
    config = GenerationConfig(max_new_tokens=30, repetition_penalty=1.1)
    last = {}
    for pinned in (True, False):
        chat = StreamingChat(model, tokenizer, system=system, pin_system_prompt=pinned, generation_config=config)
        last[pinned] = ["".join(chat.send(question)) for question in questions][-1]
    assert "Redbeard" in last[True] and "Redbeard" not in last[False]


def test_conversations_side_by_side_are_what_each_is_alone(model, tokenizer):
    turns = [QUESTIONS[:2], QUESTIONS[2:]]
    together = StreamingChat(model, tokenizer, generation_config=SHORT)
    said = [["".join(parts) for parts in zip(*together.send(turn), strict=True)] for turn in turns]
    for row in range(2):
        alone = StreamingChat(model, tokenizer, generation_config=SHORT)
        assert ["".join(alone.send(turn[row])) for turn in turns] == [answers[row] for answers in said]


def test_the_chat_of_the_readme_and_its_restoring(monkeypatch, capsys, tmp_path):
    typed = iter(["What is the capital of France?", "And of Italy?", ""])
    monkeypatch.chdir(tmp_path)
    names = run_block("StreamingChat(", FOLDER, input=lambda prompt: next(typed))
    printed = capsys.readouterr().out
    assert "Paris" in printed and "Rome" in printed
    before = names["chat"]
    after = run_block("chat.save(", FOLDER, CHAT, **names)["chat"]
    assert after is not before and "".join(before.send("Where were we?")) == capsys.readouterr().out
    assert "".join(before.send("And of Spain?")) == "".join(after.send("And of Spain?"))
