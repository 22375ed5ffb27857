"""Forget the choice of kernels between tests."""

import pytest

from cadiff.kernels import dispatch


@pytest.fixture
def choose(monkeypatch):
    """Give a function that sets CADIFF_KERNELS as if the process had just started."""

    def set_kernels(value):
        monkeypatch.setenv("CADIFF_KERNELS", value)
        dispatch.forget()

    yield set_kernels
    monkeypatch.undo()
    dispatch.forget()
