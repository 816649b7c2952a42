"""Paths that a monitor's client may name under `virtserial serve`."""

from __future__ import annotations

import json
import os
import socket

import pytest
from support.device_process import controller_options, port_options

from virtserial.chardev.file import FileChardev
from virtserial.chardev.pty import PtyChardev
from virtserial.chardev.unix_listener import UnixListener
from virtserial.client.qmp import QmpClient
from virtserial.daemon.keeper.path_policy import PathPolicy
from virtserial.errors import ConfigError
from virtserial.loop import EventLoop
from virtserial.monitor.qmp import QmpError
from virtserial.options.chardev_options import make_chardev


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
        ("file", {"out": "/proc/self/fd/0"}),
        ("file", {"out": "/proc/self/fd/5"}),
        ("file", {"out": "/dev/stderr"}),
        ("file", {"out": "/proc/self/root/FOLDER/other"}),
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
    with pytest.raises(QmpError, match="is not a path that a monitor may use: start virtserial serve with --allow"):
        monitor.execute("chardev-add", chardev(kind, **json.loads(text)))
    assert not (folder / "other").exists()
    assert "new" not in [one["label"] for one in monitor.execute("query-chardev")]


def test_controller_listens_only_where_it_may(monitor, folder):
    with pytest.raises(QmpError, match="--allow-path"):
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


@pytest.fixture
def mine(tmp_path):
    """A folder that is allowed, whose owner may change links in it at any moment; `elsewhere` is not allowed."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "elsewhere").mkdir()
    return tmp_path / "mine"


class Swapping(PathPolicy):
    """A policy whose allowed folder's owner is as fast as can be: `swap` runs between every check and its use."""

    def __init__(self, allowed, swap):
        super().__init__(allowed)
        self._swap = swap

    def _check_real(self, path, real):
        super()._check_real(path, real)
        self._swap()


def test_link_that_takes_the_place_of_a_folder_leads_nowhere(mine, tmp_path):
    def swap():
        (mine / "sub").rename(mine / "old")
        (mine / "sub").symlink_to(tmp_path / "elsewhere")

    (mine / "sub").mkdir()
    with pytest.raises(OSError, match="a symbolic link has just taken its place"):
        Swapping([str(mine)], swap).open(str(mine / "sub" / "file"), os.O_WRONLY | os.O_CREAT)
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_link_that_takes_the_place_of_a_file_is_not_followed(mine, tmp_path):
    victim = tmp_path / "elsewhere" / "victim"
    victim.write_text("precious")
    policy = Swapping([str(mine)], lambda: (mine / "file").symlink_to(victim))
    with pytest.raises(OSError, match="symbolic link"):
        policy.open(str(mine / "file"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    assert victim.read_text() == "precious"


def test_socket_is_bound_and_reached_in_its_real_folder_only(mine, tmp_path):
    def swap():
        (mine / "sub").rename(mine / "old")
        (mine / "sub").symlink_to(tmp_path / "elsewhere")

    (mine / "sub").mkdir()
    with pytest.raises(ConfigError, match="Failed to bind socket"):
        UnixListener(str(mine / "sub" / "socket"), 1, reach=Swapping([str(mine)], swap))
    assert list((tmp_path / "elsewhere").iterdir()) == []
    with socket.socket(socket.AF_UNIX) as private, socket.socket(socket.AF_UNIX) as client:
        private.bind(str(tmp_path / "elsewhere" / "private"))
        private.listen()
        policy = Swapping([str(mine)], lambda: (mine / "peer").symlink_to(tmp_path / "elsewhere" / "private"))
        with pytest.raises(OSError), policy.socket_at(str(mine / "peer")) as path:
            client.connect(path)


def test_socket_is_removed_from_its_own_folder_only(mine, tmp_path, monkeypatch):
    def look_and_swap(*words, **more):
        status = look(*words, **more)
        (mine / "sub").rename(mine / "old")
        (mine / "sub").symlink_to(tmp_path / "elsewhere")
        return status

    (mine / "sub").mkdir()
    (tmp_path / "elsewhere" / "name").write_text("precious")
    listener = UnixListener(str(mine / "sub" / "name"), 1, reach=PathPolicy([str(mine)]))
    look = os.lstat
    monkeypatch.setattr(os, "lstat", look_and_swap)
    listener.close()
    monkeypatch.undo()
    assert (tmp_path / "elsewhere" / "name").read_text() == "precious"
    assert not os.path.lexists(mine / "old" / "name")


def test_socket_in_an_allowed_folder_works_as_ever(mine):
    policy = PathPolicy([str(mine)])
    path = str(mine / "socket")
    listener = UnixListener(path, 5, reach=policy)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(path)
    with pytest.raises(ConfigError, match="in use by a live server"):
        UnixListener(path, 5, reach=policy)
    with socket.socket(socket.AF_UNIX) as client, policy.socket_at(path) as place:
        client.connect(place)
    listener.close()
    assert not os.path.exists(path)


def test_links_inside_an_allowed_folder_are_followed(mine):
    (mine / "real").mkdir()
    (mine / "link").symlink_to(mine / "real")
    os.close(PathPolicy([str(mine)]).open(str(mine / "link" / "file"), os.O_WRONLY | os.O_CREAT))
    assert (mine / "real" / "file").exists()


@pytest.mark.parametrize("kind", ["file", "pty", "client", "server", "log"])
def test_every_kind_asks_the_policy_when_it_uses_a_path(mine, tmp_path, kind):
    """The folder becomes a link after the check of the monitor's command, before the chardev opens."""
    (mine / "sub").mkdir()
    outside = tmp_path / "elsewhere"
    with socket.socket(socket.AF_UNIX) as private:
        private.bind(str(outside / "private"))
        private.listen()
        chardev = {
            "file": lambda: FileChardev("c", str(mine / "sub" / "made")),
            "pty": lambda: PtyChardev("c", str(mine / "sub" / "made")),
            "client": lambda: make_chardev("c", "socket", {"path": str(mine / "sub" / "private")}),
            "server": lambda: make_chardev(
                "c", "socket", {"path": str(mine / "sub" / "made"), "server": True, "wait": False}
            ),
            "log": lambda: make_chardev("c", "null", {"logfile": str(mine / "sub" / "made")}),
        }[kind]()
        chardev.reach = PathPolicy([str(mine)])
        chardev.reach.check(chardev.paths())
        (mine / "sub").rename(mine / "old")
        (mine / "sub").symlink_to(outside)
        loop = EventLoop()
        with pytest.raises(ConfigError):
            chardev.open(loop, None)
        loop.close()
        assert [each.name for each in outside.iterdir()] == ["private"]
        private.settimeout(0)
        with pytest.raises(BlockingIOError):
            private.accept()
