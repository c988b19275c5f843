"""Where fetched texts lie, and how they get there."""

from pathlib import Path

TEXTS = Path(__file__).resolve().parents[1] / "texts"


def write_whole(path: Path, data: bytes) -> None:
    """Write a file that is there complete or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(data)
    partial.replace(path)
