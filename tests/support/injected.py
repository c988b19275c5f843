"""Does a tiny Llama stream, or is it plain? For tests of what is done to a model around injection."""

from references.naive import naive_logits
from support.helpers import (
    TEETH,
    S,
    W,
    assert_close,
    assert_tokens_follow,
    largest_difference,
    plain_logits,
    random_ids,
    stream,
    tiny_llama,
)

IDS = random_ids(60)
CALLS = [20, 1, 19, 20]


def assert_streams(model, sinks=S, window=W):
    """`model`, which has the weights of `tiny_llama`, streams with so many sinks and such a window."""
    assert_close(stream(model, IDS[None], CALLS)[0][0], naive_logits(tiny_llama(), IDS, sinks, window))


def assert_plain(model):
    """`model` gives what plain Transformers gives, which is something else."""
    plain = plain_logits(tiny_llama(), IDS[None])
    assert largest_difference(plain[0], naive_logits(tiny_llama(), IDS, S, W)) > TEETH
    assert_close(stream(model, IDS[None], CALLS)[0], plain)


def assert_generates(model):
    """Each token that `model` makes follows from the tokens that it then sees."""
    sequence = model.generate(IDS[None, :20], max_new_tokens=20, do_sample=False)[0]
    assert_tokens_follow(naive_logits(tiny_llama(), sequence, S, W), sequence, 20)
