"""Shared by all tests: two threads at most, a fixed seed, and the marker for tests that need a GPU."""

import pytest
import torch

import fastcv


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    usable = torch.cuda.is_available() and fastcv.is_built() and fastcv.build_info()["cuda"]
    for item in items:
        if "cuda" in item.keywords and not usable:
            item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU and a build with CUDA"))


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
