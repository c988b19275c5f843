"""Where a chat with a name is kept."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

from platformdirs import user_data_path


def session_folder() -> Path:
    """Return the folder for chats in the user's data directory."""
    return user_data_path("attention_sinks", appauthor=False) / "chats"


def session_file(name: str, folder: Path | None) -> Path:
    """Return the file of the chat `name`, which need not exist, nor need its folder.

    A hash of the name is what tells files apart; of the name itself, only letters, digits and hyphens are in it.

    Raises
    ------
    ValueError
        When the name is empty.
    OSError
        When the file cannot be written.
    """
    if not name.strip():
        raise ValueError("--session needs a name, such as --session garden.")
    folder = (folder or session_folder()).expanduser().absolute()
    readable = re.sub("[^a-z0-9]+", "-", name.lower()).strip("-")[:40]
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:16]
    file = folder / f"{readable}-{digest}.safetensors".lstrip("-")
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK) or file.is_dir():
        raise OSError(f"the session folder {str(folder)!r} cannot be written; choose another by --session-folder.")
    return file
