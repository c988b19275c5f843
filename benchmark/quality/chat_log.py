"""The JSON lines of demo/streaming.py, read back: which experiment it was and what was answered.

A run is a line with `experiment` and `model`, a line with `prompt` and `answer` for every turn, and a line with `turns`
and other figures, unless the run was broken off.
"""

import json
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class ChatLog:
    """The last run in a log.

    Attributes
    ----------
    experiment : str
        attention_sinks, windowed or transformers.
    model : str
    answers : list of str
        One per turn, in order.
    turns : int or None
        As the run itself counted them; None when it was broken off.
    runs : int
        In the file; every run of the demo is appended.
    """

    experiment: str
    model: str
    answers: list[str]
    turns: int | None
    runs: int


def read_chat_log(path: Path) -> ChatLog:
    """Read a log; ValueError when it is empty or was not written by demo/streaming.py --json_log."""
    entries = _entries(path)
    starts = [number for number, entry in enumerate(entries) if "experiment" in entry]
    if not starts:
        raise ValueError(f"{path} is {'not a log of demo/streaming.py --json_log' if entries else 'empty'}.")
    first, *entries = entries[starts[-1] :]
    answers = [entry["answer"].strip() for entry in entries if "answer" in entry]
    if not answers:
        raise ValueError(f"{path} has no turn: its last run was broken off before the first answer.")
    turns = next((entry["turns"] for entry in entries if "turns" in entry), None)
    return ChatLog(first["experiment"], first["model"], answers, turns, len(starts))


def _entries(path: Path) -> list[dict]:
    """The objects of a file, one per line; a last line that was cut off in the middle is left out."""
    *lines, _ = path.read_text(encoding="utf-8").split("\n")  # an answer may hold other characters that end lines
    try:
        entries = [json.loads(line) for line in lines]
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not a log of demo/streaming.py --json_log: {error}.") from error
    return [entry if isinstance(entry, dict) else {} for entry in entries]
