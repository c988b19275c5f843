"""README, CONTRIBUTING and docs/: every Python block runs, every link leads somewhere, the README stays short."""

import re
from functools import partial
from unittest import mock

import pytest
import torch

from support.gguf_files import write_gguf
from support.helpers import tiny_llama
from support.pages import PAGES, README, blocks, page_text, python_blocks, save_tiny_checkpoint
from support.paths import ROOT

WITH_PYTHON = [page for page in PAGES if python_blocks(page)]
NOT_RUN = {"bash", "console", "text", "bibtex"}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    save_tiny_checkpoint(folder)
    return folder


@pytest.mark.newest
@pytest.mark.parametrize("page", WITH_PYTHON)
def test_every_python_block_runs(page, checkpoint, tmp_path, monkeypatch, capsys):
    """The blocks of a page share their names, as for a reader who types one after another."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    write_gguf(tiny_llama(), tmp_path / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf")
    typed = iter(["Hello!", "And then?", ""])
    names = {"__name__": "__main__", "input": lambda prompt: next(typed)}
    with mock.patch.object(torch, "compile", partial(torch.compile, backend="eager")):
        for block in python_blocks(page):
            block.run(checkpoint, names)


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


def _anchors(path):
    """The anchors of a page's headings, as code hosts and MkDocs make them."""
    headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


def test_every_page_is_in_the_navigation():
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    for page in PAGES:
        if page.startswith("docs/"):
            assert f": {page.removeprefix('docs/')}\n" in navigation, f"{page} is missing in mkdocs.yml"
