"""What holds for the tests of all scripts."""

import pytest
import torch


@pytest.fixture(autouse=True)
def restored_threads():
    """The scripts set PyTorch's number of threads; the tests go on with their own."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
