"""What is particular to an architecture, one module each, named for its `config.model_type`."""

from . import falcon, gpt_neox, gptj, llama, mistral, mpt
from .falcon import *  # noqa: F403
from .gpt_neox import *  # noqa: F403
from .gptj import *  # noqa: F403
from .llama import *  # noqa: F403
from .mistral import *  # noqa: F403
from .mpt import *  # noqa: F403

__all__ = [name for module in (falcon, gpt_neox, gptj, llama, mistral, mpt) for name in module.__all__]
