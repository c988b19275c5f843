"""The Python of the README and of docs/, run as it stands there but for what `SUBSTITUTES` and a folder replace."""

import re
from dataclasses import dataclass
from pathlib import Path

from support.helpers import tiny_llama
from support.paths import ROOT
from support.scripted import WITH_TOOLS
from support.toy_tokenizers import byte_tokenizer

README, CHAT, SAVING, STREAMS, COMPILING = (
    "README.md",
    *(f"docs/guides/{name}.md" for name in ("chat", "saving", "streams", "compiling")),
)
PAGES = [
    path.relative_to(ROOT).as_posix()
    for path in (ROOT / README, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md")))
]

MODELS = ("HuggingFaceTB/SmolLM2-135M-Instruct", "Qwen/Qwen3-0.6B")
SUBSTITUTES = {"100_000": "40"}
"""What a page says -> what a test can wait for."""

FENCE = re.compile(r"^[ \t]*```([^\n]*)\n(.*?)^[ \t]*```[ \t]*$", flags=re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A fenced block of a page; `line` is the number of its first line of code."""

    page: str
    line: int
    language: str
    code: str

    def run(self, folder, names):
        """Run the code with the model in `folder`, among `names`; errors point to the line of the page."""
        code = self.code
        for said, meant in (SUBSTITUTES | dict.fromkeys(MODELS, Path(folder).as_posix())).items():
            code = code.replace(said, meant)
        exec(compile("\n" * (self.line - 1) + code, str(ROOT / self.page), "exec"), names)


def page_text(page):
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page):
    """Every fenced block of a page, in order."""
    text = page_text(page)
    return [
        Block(page, text.count("\n", 0, found.start(2)) + 1, found[1].strip(), found[2])
        for found in FENCE.finditer(text)
    ]


def python_blocks(page):
    return [block for block in blocks(page) if block.language == "python"]


def the_block(part, page=README):
    """The one Python block of a page that contains `part`."""
    (block,) = [block for block in python_blocks(page) if part in block.code]
    return block


def run_block(part, folder, page=README, **names):
    """Run that block with the model in `folder`; returns the names it knows afterwards."""
    the_block(part, page).run(folder, names)
    return names


def save_tiny_checkpoint(folder):
    """A model that takes any text and answers in five tokens, with its tokenizer."""
    tokenizer = byte_tokenizer(WITH_TOOLS)
    model = tiny_llama(vocab_size=len(tokenizer), max_position_embeddings=2048)
    model.generation_config.max_new_tokens = 5
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
