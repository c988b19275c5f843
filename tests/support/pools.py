"""How the conversations of tests of a pool answer."""

from transformers import GenerationConfig

from support.toy_tokenizers import WORDS

S, W = 4, 12
END = WORDS.index("<end>")
ENDS = [END, *range(30, 50)]  # a third of what the model says ends its turn
SPEAKS = {"suppress_tokens": [0, 2, 3, 4, 5], "max_new_tokens": 9}  # words without a meaning to the template


def config(**options):
    return GenerationConfig(**{"eos_token_id": ENDS, **SPEAKS, **options})
