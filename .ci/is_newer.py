"""Say whether this environment has another release of what models run on than the lock; exit with 1 if it has not."""

import re
import sys
from importlib.metadata import version
from pathlib import Path

from versions import PACKAGES

lock = (Path(__file__).parents[1] / "constraints.txt").read_text()
lines = re.findall(r"^([\w.-]+)==([\w.]+)", lock, re.MULTILINE)
locked = {name.replace("-", "_"): release for name, release in reversed(lines)}  # that for newer Pythons comes first
others = [f"{name} {version(name)}" for name in PACKAGES if version(name).split("+")[0] != locked[name]]
if others:
    print("Not as in the lock:", ", ".join(others))
else:
    print("All is as in the lock, so `make test` has run what `make test-newest` would run.")
sys.exit(not others)
