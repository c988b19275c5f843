"""MkDocs hook: the figures of `benchmark/results` are part of the site without a second copy in the repository.

A page links to such a figure by its place in the repository, so that the link also works where the Markdown is read on
a code host. For the site, the figures that pages link to are added under `benchmark/results/`, and the links follow.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
FIGURES = "benchmark/results"
LINK = re.compile(r"\]\(((?:\.\./)+benchmark/results/[^)\s]+\.png)\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add every figure of the benchmarks to the files of the site."""
    for path in sorted((ROOT / FIGURES).rglob("*.png")):
        place = path.relative_to(ROOT).as_posix()
        files.append(File.generated(config, place, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point links to figures at their place in the site."""
    folder = posixpath.dirname(page.file.src_uri)

    def in_site(match: re.Match[str]) -> str:
        place = posixpath.normpath(posixpath.join("docs", folder, match[1]))
        return f"]({posixpath.relpath(place, folder or '.')})"

    return LINK.sub(in_site, markdown)
