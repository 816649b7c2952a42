"""Paths that a monitor's client may name under `virtserial serve`."""

from __future__ import annotations

import json

import pytest
from support.device_process import controller_options, port_options

from virtserial.client.qmp import QmpClient
from virtserial.daemon.keeper.path_policy import PathPolicy
from virtserial.errors import ConfigError


def chardev(kind, **data):
    return {"id": "new", "backend": {"type": kind, "data": data}}


@pytest.fixture
def monitor(start, folder):
    """A monitor of a device that was started with --allow-path FOLDER/mine."""
    (folder / "mine").mkdir()
    start(
        *controller_options(folder), *port_options(folder, "a"), "-qmp", f"unix:{folder}/qmp,server=on,wait=off",
        "-chardev", f"file,id=f,path={folder}/of-the-options", "--allow-path", f"{folder}/mine", allow_path=None,
    )  # fmt: skip
    with QmpClient(f"{folder}/qmp", 30) as client:
        yield client


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        ("file", {"out": "FOLDER/other"}),
        ("file", {"out": "FOLDER/mine/../other"}),
        ("file", {"out": "FOLDER/mine/out", "in": "/etc/hostname"}),
        ("file", {"out": "FOLDER/mine/link/other"}),
        ("pipe", {"device": "FOLDER/other"}),
        ("serial", {"device": "/dev/ttyS0"}),
        ("socket", {"addr": {"type": "unix", "data": {"path": "FOLDER/other"}}, "server": True, "wait": False}),
        ("socket", {"addr": {"type": "unix", "data": {"path": "FOLDER/other"}}, "server": False}),
        ("ringbuf", {"size": 4096, "logfile": "FOLDER/other"}),
    ],
)
def test_path_that_was_not_allowed_is_refused_and_nothing_is_made(monitor, folder, kind, data):
    (folder / "mine" / "link").symlink_to(folder)
    text = json.dumps(data).replace("FOLDER", str(folder))
    with pytest.raises(ConfigError, match="is not a path that a monitor may use: start virtserial serve with --allow"):
        monitor.execute("chardev-add", chardev(kind, **json.loads(text)))
    assert not (folder / "other").exists()
    assert "new" not in [one["label"] for one in monitor.execute("query-chardev")]


def test_controller_listens_only_where_it_may(monitor, folder):
    with pytest.raises(ConfigError, match="--allow-path"):
        monitor.execute("device_add", {"driver": "virtio-serial", "id": "new", "socket": f"{folder}/other"})
    monitor.execute("device_add", {"driver": "virtio-serial", "id": "new", "socket": f"{folder}/mine/socket"})


def test_paths_that_were_allowed_or_are_in_the_options_are_taken(monitor, folder):
    monitor.execute("chardev-add", chardev("file", out=f"{folder}/mine/out"))
    monitor.execute("chardev-remove", {"id": "new"})
    monitor.execute("chardev-add", chardev("ringbuf", size=4096))
    monitor.execute("chardev-remove", {"id": "new"})
    monitor.execute("chardev-add", chardev("file", out=f"{folder}/of-the-options"))


def test_directory_is_allowed_with_all_below_it_and_no_name_that_begins_alike(tmp_path):
    policy = PathPolicy([str(tmp_path / "a")])
    policy.check([str(tmp_path / "a"), str(tmp_path / "a" / "b" / "c")])
    with pytest.raises(ConfigError, match=f"--allow-path {tmp_path}$"):
        policy.check([str(tmp_path / "ab")])
