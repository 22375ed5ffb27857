"""Skip what needs a GPU where there is none, and forget the choice of kernels between tests."""

import pytest
import torch

from cadiff.kernels import dispatch


def pytest_collection_modifyitems(items):
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU"))


@pytest.fixture
def choose(monkeypatch):
    """Give a function that sets CADIFF_KERNELS as if the process had just started."""

    def set_kernels(value):
        monkeypatch.setenv("CADIFF_KERNELS", value)
        dispatch.backend.cache_clear()

    yield set_kernels
    monkeypatch.undo()
    dispatch.backend.cache_clear()
