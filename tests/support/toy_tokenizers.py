"""Tokenizers small enough to read, with chat templates of every temper."""

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from support.helpers import VOCABULARY

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


def word_tokenizer(template=CHATML):
    """A token for every word; w0, w1, … are the words that mean nothing."""
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"unk_token": "<unk>", "eos_token": "<end>", "pad_token": "<end>", "bos_token": "<start>"}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)
    fast.chat_template = template
    return fast


def byte_tokenizer(template=CHATML):
    """A token for every byte, so that an accented letter is two and an emoji four; any text can be written."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", bos_token="<start>")
    fast.chat_template = template
    return fast
