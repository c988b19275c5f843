"""The logs of demo/streaming.py, read back: which experiment it was and what was answered."""

import re
from dataclasses import dataclass
from pathlib import Path

HEADER = re.compile(r"^# (?P<model>.+): .+ \((?P<experiment>attention_sinks|windowed|plain Transformers)\)$", re.M)
TURN = re.compile(r"\nUser: (?P<prompt>.*?)\n\nAssistant: (?P<answer>.*?)(?=\n\nUser: |\n\nturns {2,}\d|\Z)", re.S)
TURNS = re.compile(r"^turns {2,}(?P<turns>[\d,]+)$", re.M)


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
        As the run itself counted them; None when it was broken off. More answers than turns: the model wrote "User:"
        and "Assistant:" itself.
    runs : int
        In the file; every run of the demo is appended.
    """

    experiment: str
    model: str
    answers: list[str]
    turns: int | None
    runs: int


def read_chat_log(path: Path) -> ChatLog:
    """Read a log; ValueError when it is empty or was not written by demo/streaming.py."""
    text = path.read_text(encoding="utf-8")
    headers = list(HEADER.finditer(text))
    if not headers:
        raise ValueError(f"{path} is {'not a log of demo/streaming.py' if text.strip() else 'empty'}.")
    run = text[headers[-1].end() :]
    answers = [match["answer"].strip() for match in TURN.finditer(run)]
    if not answers:
        raise ValueError(f"{path} has no turn: its last run was broken off before the first answer.")
    experiment = headers[-1]["experiment"].replace("plain Transformers", "transformers")
    counted = TURNS.search(run)
    turns = int(counted["turns"].replace(",", "")) if counted else None
    return ChatLog(experiment, headers[-1]["model"], answers, turns, len(headers))
