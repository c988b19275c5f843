"""What type checkers know about the package: mypy reads a user's script, which says what it must find."""

import os
import re
import subprocess
import sys
from pathlib import Path

import attention_sinks

SCRIPT = Path(__file__).parent / "typed_script.py"

CONFIG = """
[mypy]
strict = true
untyped_calls_exclude = torch,transformers
follow_imports = silent
[mypy-torch.*,transformers.*]
implicit_reexport = true
[mypy-peft.*,torch._dynamo.*,torch._inductor.*,torch.ao.*,torch.distributed.*,torch.onnx.*,transformers.models.*]
follow_imports = skip
[mypy-transformers.models,transformers.models.auto.*,transformers.models.llama.*]
follow_imports = silent
"""
"""Most of PyTorch and Transformers does not matter to the script. Without it, mypy takes half the time or less."""

WRONG = """
assert_type(chat.send("Hello!"), AnswerStreams)
assert_type(chat.cache.nbytes, float)
assert_type(supported_model_types(), tuple[str, ...])
assert_type(inject_attention_sinks(llama), PreTrainedModel)
"""
"""Lines that must fail, so that the check of the others is known to work."""


def test_a_script_of_a_user(tmp_path):
    script = SCRIPT.read_text()
    (tmp_path / "script.py").write_text(script + WRONG)
    (tmp_path / "mypy.ini").write_text(CONFIG)
    command = [sys.executable, "-m", "mypy", "--config-file=mypy.ini", f"--cache-dir={os.devnull}", "script.py"]
    package = str(Path(attention_sinks.__file__).parent.parent)
    checked = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, "MYPYPATH": package}, capture_output=True, text=True
    )
    said = checked.stdout + checked.stderr
    first = script.count("\n") + 2
    expected = [(first + index, "assert-type") for index in range(len(WRONG.split("\n")) - 2)]
    found = [(int(line), kind) for line, kind in re.findall(r"^script\.py:(\d+): error: .*\[(.*)\]$", said, re.M)]
    assert checked.returncode == 1 and found == expected, said
