from __future__ import annotations

import gc

import pytest
from support.served_device import build_server, handle, open_descriptors, version


@pytest.fixture(autouse=True)
def no_descriptor_is_left():
    before = open_descriptors()
    yield
    if open_descriptors() > before:
        gc.collect()  # a mapping has a descriptor of its own, and device and transport know each other
    assert open_descriptors() <= before  # fewer: what an earlier test had left to the collector is gone


@pytest.fixture
def server():
    """A server whose version is agreed."""
    built = build_server()
    assert handle(built, version())[0] == 0
    yield built
    built.disconnected()
