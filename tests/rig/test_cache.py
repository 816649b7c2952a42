"""The cache: whole entries or none, one builder at a time."""

from __future__ import annotations

import threading
import time

import pytest

from virtserial.rig import RigUnavailable
from virtserial.rig.cache import build_once, cache_root


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("VIRTSERIAL_CACHE", str(tmp_path / "cache"))


def test_environment_names_the_folder(monkeypatch, tmp_path):
    assert cache_root() == tmp_path / "cache"
    monkeypatch.delenv("VIRTSERIAL_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_root() == tmp_path / "xdg" / "virtserial"


def test_entry_is_built_once():
    builds = []
    for _ in range(2):
        entry = build_once("thing-1", lambda folder: builds.append((folder / "file").write_text("x")))
    assert (entry / "file").read_text() == "x"
    assert len(builds) == 1


def test_failed_build_leaves_no_entry_and_no_litter():
    def fail(folder):
        (folder / "half").write_text("x")
        raise RigUnavailable("the network is away")

    with pytest.raises(RigUnavailable):
        build_once("thing-1", fail)
    assert [path.name for path in cache_root().iterdir()] == [".thing-1.lock"]
    assert build_once("thing-1", lambda folder: (folder / "file").write_text("x")).is_dir()


def test_second_builder_waits_for_the_first():
    builds = []

    def build(folder):
        builds.append(folder)
        time.sleep(0.2)
        (folder / "file").write_text("x")

    threads = [threading.Thread(target=build_once, args=("thing-1", build)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(builds) == 1


def test_unwritable_cache_is_said_in_one_line(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("VIRTSERIAL_CACHE", str(tmp_path / "file" / "below"))
    with pytest.raises(RigUnavailable, match="cannot be written"):
        build_once("thing-1", lambda folder: None)
