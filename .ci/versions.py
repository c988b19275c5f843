"""Print the versions that an environment tests, on one line for the logs."""

import platform
from importlib.metadata import version

PACKAGES = "torch", "transformers", "tokenizers", "accelerate", "huggingface_hub", "peft"

if __name__ == "__main__":
    releases = [f"{name} {version(name)}" for name in PACKAGES]
    print(f"Python {platform.python_version()}", *releases, sep=", ", flush=True)
