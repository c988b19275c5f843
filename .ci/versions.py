"""Print the versions that an environment tests, on one line for the logs."""

import platform
from importlib.metadata import version

PACKAGES = "torch", "transformers", "tokenizers", "accelerate", "huggingface_hub", "peft"

print(f"Python {platform.python_version()}", *(f"{name} {version(name)}" for name in PACKAGES), sep=", ", flush=True)
