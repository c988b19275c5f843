"""What differs between Transformers versions; nothing else in the package asks for a version."""

from __future__ import annotations

import transformers
from packaging.version import Version

OLDEST_TRANSFORMERS = "5.17"
"""Older releases break assisted decoding or lack flags that caches need."""

NEWEST_TRANSFORMERS = "5.23"
"""The newest release whose causal language models have all been looked at: each is supported or refused."""

SINCE = {
    **dict.fromkeys(("axk2", "deepseek_v32", "glm_moe_dsa", "hy_v4"), (5, 18)),
    **dict.fromkeys(("qwen4_exp", "qwen4_exp_text"), (5, 21)),
}
"""Types that older releases know too, but whose keys or positions they cache in another way: the first that streams."""


def check_transformers() -> None:
    """ImportError, with the cure, when the installed Transformers is too old."""
    if Version(transformers.__version__).release < Version(OLDEST_TRANSFORMERS).release:
        raise ImportError(
            f"attention_sinks needs transformers>={OLDEST_TRANSFORMERS}, but {transformers.__version__} is installed; "
            f"run `pip install --upgrade 'transformers>={OLDEST_TRANSFORMERS}'`."
        )


def transformers_release() -> tuple[int, int]:
    """Major and minor version of the installed Transformers."""
    return Version(transformers.__version__).release[:2]


def check_release_for(model_type: str) -> None:
    """NotImplementedError, with the cure, when `model_type` needs a newer Transformers to stream."""
    if not streams_in_this_release(model_type):
        needed = ".".join(map(str, SINCE[model_type]))
        raise NotImplementedError(
            f"model_type={model_type!r} streams with transformers>={needed}, but {transformers.__version__} is "
            f"installed; call `pip install --upgrade 'transformers>={needed}'`."
        )


def streams_in_this_release(model_type: str) -> bool:
    return SINCE.get(model_type, (0, 0)) <= transformers_release()


def moshi_hands_arguments_on() -> bool:
    """Whether Moshi hands keyword arguments that it does not know on to its layers."""
    return transformers_release() >= (5, 21)
