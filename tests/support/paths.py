"""Where the repository and its tests lie, whatever folder pytest was started in."""

from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
ROOT = TESTS.parent
