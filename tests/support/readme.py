"""The README's own code, run as it stands there but for the name of the model."""

import re
from pathlib import Path

from support.paths import ROOT

README = ROOT / "README.md"
MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"


def readme_code(part):
    """The one Python block of the README that contains `part`."""
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)
    (block,) = [block for block in blocks if part in block]
    return block


def run_readme(part, folder, **names):
    """Run that block with the model in `folder`; returns the names it knows afterwards."""
    exec(compile(readme_code(part).replace(MODEL, Path(folder).as_posix()), f"README: {part}", "exec"), names)
    return names
