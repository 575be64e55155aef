"""Shared by all tests: fixed seeds (of torch and of hypothesis), the number of threads, and the marker for tests that need a GPU."""

from collections.abc import Callable, Iterator

import hypothesis
import pytest
import torch

import fastcv

# The same examples on every run: a failure is a change's, never the day's.
hypothesis.settings.register_profile("fixed", derandomize=True, deadline=None)
hypothesis.settings.load_profile("fixed")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    usable = torch.cuda.is_available() and fastcv.is_built() and fastcv.build_info()["cuda"]
    for item in items:
        if item.get_closest_marker("cuda") and not usable:
            item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU and a build with CUDA"))


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    """Sets the number of threads; the test's end restores it."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)
