"""README, CONTRIBUTING and docs/: every Python block runs, every link leads somewhere, the README stays short."""

import re
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from unittest import mock

import openai
import pytest
import torch

import attention_sinks
from support.gguf_files import write_gguf
from support.helpers import tiny_llama
from support.pages import CHAT, PAGES, README, blocks, page_text, python_blocks, run_block, save_tiny_checkpoint
from support.paths import ROOT
from support.scripted import save_scripted_model
from support.server import serving
from support.toy_tokenizers import byte_tokenizer

WITH_PYTHON = [page for page in PAGES if python_blocks(page)]
SERVER = "docs/guides/server.md"
NOT_RUN = {"bash", "console", "text", "bibtex"}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    save_tiny_checkpoint(folder)
    return folder


@contextmanager
def server_for(page, folder):
    """The server of which a page speaks, where clients look for it."""
    if page != SERVER:
        yield
        return
    model = attention_sinks.AutoModelForCausalLM.from_pretrained(folder)
    pool = attention_sinks.StreamPool(model, attention_sinks.AutoTokenizer.from_pretrained(folder))
    with serving(pool, model=Path(folder).as_posix()) as served:
        with mock.patch.object(openai, "OpenAI", lambda base_url, api_key: served.client(api_key)):
            yield
        assert pool.numbers.turns_finished == 2


@pytest.mark.each_release
@pytest.mark.parametrize("page", WITH_PYTHON)
def test_every_python_block_runs(page, checkpoint, tmp_path, monkeypatch, capsys):
    """The blocks of a page share their names, as for a reader who types one after another."""
    if any("BitsAndBytesConfig" in block.code for block in python_blocks(page)):
        pytest.importorskip("bitsandbytes")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    tokenizer = byte_tokenizer()
    model = tiny_llama(vocab_size=len(tokenizer))
    write_gguf(model, tmp_path / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf", tokenizer)
    typed = iter(["Hello!", "And then?", ""])
    names = {"__name__": "__main__", "input": lambda prompt: next(typed)}
    with mock.patch.object(torch, "compile", partial(torch.compile, backend="eager")), server_for(page, checkpoint):
        for block in python_blocks(page):
            block.run(checkpoint, names)


def test_the_tools_of_the_guide_are_called(tmp_path):
    call = '<tool_call> {"name": "current_time", "arguments": {"timezone": "Europe/Paris"}} </tool_call>'
    answers = {"in Paris? <end> <start> assistant ": call}
    folder = save_scripted_model(tmp_path / "tiny", answers, by_bytes=True)
    model = attention_sinks.AutoModelForCausalLM.from_pretrained(folder)
    model.generation_config.max_new_tokens = len(call) + 10
    tokenizer = attention_sinks.AutoTokenizer.from_pretrained(folder)
    names = {"model": model, "tokenizer": tokenizer, "StreamingChat": attention_sinks.StreamingChat}
    (result,) = run_block("tools=", "unused", CHAT, **names)["results"]
    assert result["name"] == "current_time" and re.fullmatch(r"\d\d:\d\d", result["content"])


@pytest.mark.parametrize("page", PAGES)
def test_what_is_not_run_says_so(page):
    """A block in any other language than these would be skipped silently."""
    assert {block.language for block in blocks(page)} <= {"python", *NOT_RUN}
    assert page_text(page).count("```") == 2 * len(blocks(page))


def test_the_pages_that_promise_code_have_it():
    assert {README, "docs/index.md"} < set(WITH_PYTHON)
    guides = {page for page in PAGES if page.startswith("docs/guides/")}
    assert len(guides) >= 9 and guides < set(WITH_PYTHON)


def test_the_readme_is_short():
    assert len(page_text(README).split()) <= 1800


@pytest.mark.parametrize("page", PAGES)
def test_links_to_files_lead_somewhere(page):
    text = re.sub(r"```.*?```", "", page_text(page), flags=re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, anchor = link.partition("#")
        if "://" in path:
            continue
        target = (ROOT / page).parent / path if path else ROOT / page
        assert target.exists(), f"{page} links to {link}"
        if anchor:
            assert anchor in _anchors(target), f"{page} links to {link}"


@pytest.mark.parametrize("page", PAGES)
def test_files_that_are_named_exist(page):
    named = re.findall(r"\b(?:attention_sinks|benchmark|demo|docs|tests)/[\w./-]*\w", page_text(page))
    missing = {path for path in named if not (ROOT / path).exists()}
    assert not missing, f"{page} names {', '.join(sorted(missing))}"


MAP = "docs/contributing.md"
OF_THE_CODE = (MAP, "docs/glossary.md", "docs/how-it-works.md")
"""Pages that explain the code by its names."""

MODULE_TABLE = re.compile(r"^### `([\w/]+/)`\n(.*?)(?=^##)", flags=re.DOTALL | re.MULTILINE)


def test_the_map_lists_every_module():
    """`__init__.py` may be left out."""
    listed = [
        folder + file
        for folder, text in MODULE_TABLE.findall(page_text(MAP))
        for cell in re.findall(r"^\| (`.+?) \|", text, flags=re.MULTILINE)
        for file in re.findall(r"`([^`]+)`", cell)
    ]
    assert len(listed) == len(set(listed))
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "attention_sinks").rglob("*.py")}
    assert set(listed) <= modules, f"{MAP} lists {', '.join(sorted(set(listed) - modules))}"
    missing = {path for path in modules - set(listed) if not path.endswith("/__init__.py")}
    assert not missing, f"{MAP} does not list {', '.join(sorted(missing))}"


@pytest.mark.parametrize("page", OF_THE_CODE)
def test_names_of_the_code_exist(page):
    text = re.sub(r"```.*?```", "", page_text(page), flags=re.DOTALL)
    names = {name for name in re.findall(r"`([A-Za-z_][\w.]*)(?:\([^`]*\))?`", text) if not name.endswith(FILES)}
    words = {part for name in names for part in name.split(".")} - PRETEND
    missing = words - _words_of_the_code()
    assert not missing, f"{page} names {', '.join(sorted(missing))}, which no code has"


FILES = (".py", ".md", ".svg", ".txt")
PRETEND = {"new_type"}
"""What a tutorial makes up."""


@cache
def _words_of_the_code():
    files = (path for folder in ("attention_sinks", "benchmark", "tests") for path in (ROOT / folder).rglob("*.py"))
    return {word for path in files for word in re.findall(r"\w+", path.read_text(encoding="utf-8"))}


def test_the_glossary_is_in_order_and_has_each_word_once():
    words = re.findall(r"^\| \*\*(.+?)\*\* \|", page_text("docs/glossary.md"), flags=re.MULTILINE)
    assert len(words) > 60
    assert words == sorted(words, key=str.lower)
    each = [word for entry in words for word in entry.split(", ")]
    assert len(each) == len(set(each))


def _anchors(path):
    """The anchors of a page's headings, as code hosts and MkDocs make them."""
    headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


def test_the_page_on_the_api_has_every_public_name():
    text = page_text("docs/api.md")
    families = tuple(re.findall(r"`(\w+)\*`", text))
    missing = [name for name in attention_sinks.__all__ if not re.search(rf"\b{name}\b", text)]
    missing = [name for name in missing if not name.startswith(families)]
    assert not missing, f"docs/api.md does not have {', '.join(missing)}"


@pytest.mark.parametrize(
    ("page", "folders", "suffixes"),
    [
        ("benchmark/README.md", ("data", "lib", "quality", "scripts", "speed"), (".py", ".sh")),
        ("tests/README.md", ("support",), (".py",)),
        (MAP, ("../demo",), (".py",)),
    ],
)
def test_every_script_and_helper_is_listed(page, folders, suffixes):
    named = set(re.findall(r"([\w-]+\.(?:py|sh))`", page_text(page)))
    files = {path for folder in folders for path in ((ROOT / page).parent / folder).iterdir()}
    wanted = {path.name for path in files if path.suffix in suffixes and path.name != "__init__.py"}
    assert wanted and not wanted - named, f"{page} does not list {', '.join(sorted(wanted - named))}"


def test_every_folder_of_the_tests_is_listed():
    folders = {path.name for path in (ROOT / "tests").iterdir() if any(path.glob("*.py"))}
    assert folders <= set(re.findall(r"`(\w+)/`", page_text("tests/README.md")))


def test_every_page_is_in_the_navigation():
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    for page in PAGES:
        if page.startswith("docs/"):
            assert f": {page.removeprefix('docs/')}\n" in navigation, f"{page} is missing in mkdocs.yml"
