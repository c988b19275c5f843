"""Write the table of families of chat templates in Markdown, by trying each.

`PYTHONPATH=tests python -m support.chat_table` prints it. With the path of a file, it also writes the table between the
markers in that file.
"""

import html
import sys
from pathlib import Path

from attention_sinks.chat.template import ChatTemplate
from support.chat_families import CALL, FAMILIES, weather
from support.told_chat import SYSTEM, ToldChat

BEGIN, END = "<!-- begin of the table of families -->", "<!-- end of the table of families -->"
HEADINGS = (
    "models",
    "system prompt",
    "thoughts in a history",
    '`thoughts="forget"`',
    "calls of tools",
    "between turns",
)


def chat_table():
    """Return the table, a row for each family."""
    rows = [HEADINGS, ("---",) * len(HEADINGS), *map(_row, FAMILIES)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)


def updated(page):
    """Return `page` with the table between its markers."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    assert begin and end, f"the page must have the lines {BEGIN} and {END}"
    return "\n".join([before + BEGIN, chat_table(), END + after])


def _row(family):
    told = ToldChat(family, thoughts="forget" if family.thinking else "keep", tools=family.calling is not None)
    read = [_reads(told, "Hello!", family.thinking or family.plain)]
    if family.calling:
        read += [_reads(told, "How is the weather?", family.calling), _reads(told, family.result(), family.plain)]
    read.append(_reads(told, "Thank you.", family.plain))
    forgets = "—" if family.thinking is None else "yes" if all(read) else "no"
    return (
        family.models,
        _place_of_system(family),
        _thoughts_in_history(family),
        forgets,
        _tools(family, all(read)),
        _code(told.chat.template.closing().replace(SYSTEM, "…")),
    )


def _reads(told, message, said):
    """Return whether a turn fed what it should, and its answer was read as it was meant."""
    answer = told.ask(message, said)
    told.assert_streamed()
    return (answer.text.strip(), answer.thoughts, len(answer.tool_calls)) == (said.text, said.thoughts, said.calls)


def _place_of_system(family):
    try:
        template = ChatTemplate(family.tokenizer(), SYSTEM)
    except ValueError:
        return "refused"
    first, later = (turn("Hello!").text.partition("Hello!")[0] for turn in (template.first_turn, template.next_turn))
    if SYSTEM in later:
        return "repeated in every message, with a warning"
    return "at the beginning" if first.endswith(later[-3:]) else "in the first message"


def _thoughts_in_history(family):
    """Say which thoughts the template itself writes."""
    if family.thinking is None:
        return "—"
    asked = {"role": "user", "content": "Hello!"}
    answer = {"role": "assistant", "content": "Hello there!", "reasoning_content": "That is easy."}
    called = {**answer, "content": "", "tool_calls": [CALL]}
    render = ToldChat(family).chat.template._render
    if "That is easy." in render([asked, answer, asked]):
        return "all"
    if family.calling and "That is easy." in render([asked, called, family.result()]):
        return "until the next question"
    return "none"


def _tools(family, works):
    if family.calling:
        return "with results" if works else "no"
    try:
        ChatTemplate(family.tokenizer(), tools=[weather])
    except ValueError:
        return "refused"
    return "not read"


def _code(text):
    """Return `text` as code in a cell, where neither pipes nor line breaks may stand."""
    escaped = html.escape(text.replace("\n", "\\n"), quote=False).replace("|", "&#124;").replace("*", "&#42;")
    return f"<code>{escaped}</code>"


if __name__ == "__main__":
    print(chat_table())
    for path in map(Path, sys.argv[1:]):
        path.write_text(updated(path.read_text(encoding="utf-8")), encoding="utf-8")
