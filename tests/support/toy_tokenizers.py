"""Tokenizers small enough to read, with chat templates of every temper."""

from functools import cache

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from support.helpers import VOCABULARY, tiny_llama

SPECIAL = ["<unk>", "<end>", "<start>"]
WORDS = [*SPECIAL, "user", "assistant", "system"]
WORDS += [f"w{i}" for i in range(VOCABULARY - len(WORDS))]

CHATML = (
    "{% for m in messages %}<start> {{ m['role'] }} {{ m['content'] }} <end> {% endfor %}"
    "{% if add_generation_prompt %}<start> assistant {% endif %}"
)
DEFAULT_SYSTEM = "{% if messages[0]['role'] != 'system' %}<start> system w1 w2 w3 w4 w5 w6 <end> {% endif %}" + CHATML
BOS_ONCE = "{{ bos_token }} " + CHATML
NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + CHATML
NUMBERS_ALL = "{{ messages | length }} " + CHATML
NUMBERS_THE_LAST = CHATML.replace("<start> assistant", "w{{ messages | length }} <start> assistant")
SYSTEM_IN_THE_LAST_MESSAGE = (
    "{% for m in messages %}{% if m['role'] == 'user' %}<start> "
    "{% if loop.last and messages[0]['role'] == 'system' %}{{ messages[0]['content'] }} {% endif %}"
    "{{ m['content'] }} <end> {% elif m['role'] == 'assistant' %}{{ m['content'] }} {% endif %}{% endfor %}"
)


THINKS = (
    "{% for m in messages %}<start> {{ m['role'] }} "
    "{% set text = m['content'] %}"
    "{% if m['role'] == 'assistant' %}{{ text.split('</think>')[-1] | trim }}{% else %}{{ text }}{% endif %}"
    " <end> {% endfor %}{% if add_generation_prompt %}<start> assistant {% endif %}"
)


def tokenizer_of(words, unk_token, **special):
    """A token for every word, numbered in their order; no chat template."""
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token=unk_token))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token=unk_token, **special)


def word_tokenizer(template=CHATML):
    """A token for every word; w0, w1, … are the words that mean nothing."""
    fast = tokenizer_of(WORDS, "<unk>", eos_token="<end>", pad_token="<end>", bos_token="<start>")
    fast.chat_template = template
    return fast


def thinking_tokenizer(template=THINKS):
    """The same with words that begin and end thoughts, in the place of the last two."""
    words = [*WORDS[:-2], "<think>", "</think>"]
    fast = tokenizer_of(words, "<unk>", eos_token="<end>", pad_token="<end>", bos_token="<start>")
    fast.chat_template = template
    return fast


def number_tokenizer():
    """Its words t0, t1, … name their ids."""
    return tokenizer_of([f"t{i}" for i in range(VOCABULARY)], "t0", pad_token="t0")


def save_chat_model(folder, **config):
    """A tiny Llama and its word tokenizer with a chat template; returns the folder."""
    tiny_llama(**config).save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    return folder


def byte_tokenizer(template=CHATML):
    """A token for every byte, so that an accented letter is two and an emoji four; any text can be written."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", bos_token="<start>")
    fast.chat_template = template
    return fast


def merging_tokenizer(corpus, vocab_size=600, **special):
    """A byte-level BPE as large models have it, trained on the texts of `corpus`; no chat template."""
    tokenizer = Tokenizer.from_str(_trained(tuple(corpus), vocab_size))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


@cache
def _trained(corpus, vocab_size):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(corpus, trainer)
    return tokenizer.to_str()
