"""The table of architectures in docs/models.md: current, complete, and saying what a call would say."""

import re
from dataclasses import replace
from unittest import mock

import pytest
from packaging.version import Version
from transformers import GPTJModel

from attention_sinks import supported_model_types
from attention_sinks.architecture.spec import Architecture
from attention_sinks.models import support_table
from attention_sinks.models.registry import ARCHITECTURES
from attention_sinks.versions import NEWEST_TRANSFORMERS, transformers_release
from support.paths import ROOT

pytestmark = pytest.mark.each_release

PAGE = ROOT / "docs" / "models.md"


def row_of(model_type, table):
    """Positions, implementations and notes of one type."""
    rows = [line[2:-2].split(" | ") for line in table.splitlines()]
    return next(row[1:] for row in rows if f"`{model_type}`" in row[0].split(", "))


@pytest.fixture(scope="module")
def table():
    return support_table.support_table()


def test_the_page_is_current():
    page = PAGE.read_text(encoding="utf-8")
    named = tuple(map(int, re.search(r"For Transformers (\d+)\.(\d+),", page).groups()))
    assert named == Version(NEWEST_TRANSFORMERS).release[:2]
    if transformers_release() != named:
        pytest.skip(f"the table is for Transformers {named}, installed is {transformers_release()}")
    assert support_table.updated(page) == page, "run python -m attention_sinks.models.support_table docs/models.md"


def test_every_type_is_there_once(table):
    names = re.findall(r"`([\w-]+)`", "\n".join(line.split(" | ")[0] for line in table.splitlines()[2:]))
    assert len(names) == len(set(names)) and set(names) == set(supported_model_types())


def test_rows_say_what_is_particular(table):
    assert row_of("llama", table)[0] == "rotary (halves)"
    assert row_of("gptj", table)[0] == "rotary (neighbours)"
    assert row_of("gptj", table)[1].startswith("eager, sdpa" if GPTJModel._supports_sdpa else "eager")
    assert row_of("mpt", table)[:2] == ["ALiBi", "eager"]
    assert row_of("falcon", table)[1] == "eager, sdpa"
    assert "ALiBi, sdpa only" in row_of("falcon", table)[2]
    assert "sinks and window stay within" in row_of("mistral", table)[2]
    assert "sinks and window stay within" not in row_of("llama", table)[2]


def test_types_with_the_same_facts_share_a_row():
    rows = {"llama": Architecture("LlamaAttention"), "qwen2": Architecture("Qwen2Attention")}
    with mock.patch.object(support_table, "ARCHITECTURES", rows):
        assert "| `llama`, `qwen2` |" in support_table.support_table()
    rows["qwen2"] = replace(rows["qwen2"], notes="different")
    with mock.patch.object(support_table, "ARCHITECTURES", rows):
        assert row_of("qwen2", support_table.support_table())[2] == "different"


def test_what_a_row_refuses_is_not_offered():
    refuses = {"llama": replace(ARCHITECTURES["llama"], unsupported_reason=_refuses_sdpa)}
    with mock.patch.object(support_table, "ARCHITECTURES", refuses):
        assert "sdpa" not in row_of("llama", support_table.support_table())[1]


def _refuses_sdpa(config):
    return "cannot" if config._attn_implementation == "sdpa" else None


def test_a_new_table_replaces_the_old_one(table):
    page = f"before\n{support_table.BEGIN}\nold\n{support_table.END}\nafter\n"
    new = support_table.updated(page)
    assert table in new and "old" not in new and new.startswith("before\n") and new.endswith("\nafter\n")
    assert support_table.updated(new) == new
    with pytest.raises(ValueError, match="support table"):
        support_table.updated("no markers")
