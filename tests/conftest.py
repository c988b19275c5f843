"""Settings of the whole suite: no network, one thread, reproducible property tests."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported

import pytest  # noqa: E402
import torch  # noqa: E402
from hypothesis import HealthCheck, settings  # noqa: E402

from support.helpers import MessageLog, streaming_llama  # noqa: E402

torch.set_num_threads(1)  # tiny tensors gain nothing from a second one, and lose much on a busy machine

# The same examples on every run; `--hypothesis-profile explore` draws new ones, many more of them.
settings.register_profile(
    "ci", derandomize=True, deadline=None, max_examples=50, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("explore", deadline=None, max_examples=500, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("ci")


@pytest.fixture
def model():
    """A tiny Llama with S = 4 sinks and a window of W = 12, made afresh; a file may have a `model` of its own."""
    return streaming_llama()


@pytest.fixture
def messages():
    """Every warning and log line of Transformers and of this library during the test."""
    with MessageLog() as log:
        yield log


@pytest.fixture
def conformance_report(record_property):
    """Notes what a tiny model really has, to be printed at the end of the run."""

    def note(animal, features):
        record_property("conformance", f"{animal}: has {', '.join(sorted(features))}")

    return note


def pytest_terminal_summary(terminalreporter):
    for report in terminalreporter.getreports("passed"):
        for name, line in report.user_properties:
            if name == "conformance" and report.when == "call":
                terminalreporter.write_line(line)
