"""`--cache-dtype`: what the caches of a chat, a server or a shared model round keys and values to."""

import pytest

from attention_sinks.architecture.setup import setup_of
from attention_sinks.command.check import CacheDtypeOption
from attention_sinks.command.loading import load_to_chat
from attention_sinks.command.sharing import look_to_share
from attention_sinks.settings import CACHE_DTYPES
from support.toy_tokenizers import save_chat_model

ASKED = (None, None, None, 12, "float32")
"""System prompt, keywords for the template, sinks, window, dtype."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(save_chat_model(tmp_path_factory.mktemp("model")))


def test_the_command_knows_what_the_library_knows():
    assert [each.value for each in CacheDtypeOption] == list(CACHE_DTYPES)


@pytest.mark.parametrize("cache_dtype", CACHE_DTYPES)
def test_a_model_is_loaded_with_it(folder, cache_dtype):
    model, _ = load_to_chat(folder, *ASKED, cache_dtype, None)
    assert setup_of(model).settings.cache_dtype == cache_dtype


def test_a_shared_model_is_loaded_with_it(folder):
    arguments, _ = look_to_share(1, folder, *ASKED, "int8")
    assert arguments["attention_sink_cache_dtype"] == "int8"
