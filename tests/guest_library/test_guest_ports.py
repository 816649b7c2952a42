"""Finding ports: the kernel's and a user-space driver's, below a root of the test's own."""

from __future__ import annotations

import socket

import pytest

from virtserial.guest.errors import NoSuchPort
from virtserial.guest.ports import Port, find_port, list_ports, open_port, wait_for_port

DEBUG = """name: org.a
guest_connected: 1
host_connected: 0
outvq_full: 0
bytes_sent: 12
bytes_received: 34
bytes_discarded: 56
is_console: no
console_vtermno: 0
"""


@pytest.fixture
def root(tmp_path):
    for folder in ("dev/virtio-ports", "sys/class/virtio-ports", "sys/kernel/debug/virtio-ports"):
        (tmp_path / folder).mkdir(parents=True)
    return tmp_path


def plug(root, node, name, link=True):
    (root / "dev" / node).touch()
    (root / "sys/class/virtio-ports" / node).mkdir()
    if name:
        (root / "sys/class/virtio-ports" / node / "name").write_text(f"{name}\n")
        if link:
            (root / "dev/virtio-ports" / name).symlink_to(f"../{node}")


def test_ports_of_the_kernel_in_order_of_their_numbers(root):
    plug(root, "vport1p10", "org.b")
    plug(root, "vport1p2", "org.a", link=False)
    plug(root, "vport0p1", None)
    assert [(port.device, port.number, port.name) for port in list_ports(str(root))] == [
        (0, 1, ""), (1, 2, "org.a"), (1, 10, "org.b")
    ]  # fmt: skip


def test_state_is_told_where_debugfs_can_be_read(root):
    plug(root, "vport0p1", "org.a")
    unknown = find_port("org.a", str(root))
    assert unknown == Port("org.a", f"{root}/dev/vport0p1", 0, 1)
    (root / "sys/kernel/debug/virtio-ports/vport0p1").write_text(DEBUG)
    assert find_port("org.a", str(root)) == Port(
        "org.a", f"{root}/dev/vport0p1", 0, 1, False, True, 12, 34, 56, False
    )


def test_ports_that_have_only_nodes_and_links_are_found(root):
    (root / "dev/vport3p4").touch()
    (root / "dev/virtio-ports/org.c").symlink_to("../vport3p4")
    assert [port.name for port in list_ports(str(root))] == ["org.c"]


def test_ports_in_a_run_directory_of_a_user_space_driver(root, tmp_path):
    run = tmp_path / "run"
    (run / "class/virtio-ports/vport0p1").mkdir(parents=True)
    (run / "class/virtio-ports/vport0p1/name").write_text("org.d\n")
    (run / "vport0p1").touch()
    assert find_port("org.d", str(root), str(run)).path == f"{run}/vport0p1"


@pytest.mark.parametrize("name", ["org.a", "vport0p1", "{root}/dev/vport0p1", "{root}/dev/virtio-ports/org.a"])
def test_port_is_found_by_every_name_it_has(root, name):
    plug(root, "vport0p1", "org.a")
    assert find_port(name.format(root=root), str(root)).number == 1


def test_a_node_of_a_folder_that_nobody_has_named_is_found_by_its_path(root, tmp_path):
    """As `virtserial guest attach --run-dir` makes it: a link to a link to a pseudo-terminal."""
    run = tmp_path / "run"
    (run / "virtio-ports").mkdir(parents=True)
    (tmp_path / "7").touch()
    (run / "vport2p3").symlink_to(tmp_path / "7")
    (run / "virtio-ports/org.e").symlink_to("../vport2p3")
    for path in (f"{run}/virtio-ports/org.e", f"{run}/vport2p3"):
        assert find_port(path, str(root)) == Port("", path, 2, 3)


def test_a_socket_of_a_user_space_driver_is_refused_with_a_way_out(tmp_path):
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "vport0p1"))
        with pytest.raises(OSError, match=r"a socket, no device: use virtserial.HostStream"):
            open_port(str(tmp_path / "vport0p1"))


def test_near_names_are_suggested(root):
    with pytest.raises(NoSuchPort, match=r"'org.a': this guest has no virtio-serial port"):
        find_port("org.a", str(root))
    plug(root, "vport0p1", "org.example.a")
    with pytest.raises(NoSuchPort, match=r"'org.exmaple.a'; did you mean 'org.example.a'\?"):
        find_port("org.exmaple.a", str(root))
    with pytest.raises(NoSuchPort, match=r"'x'; there are: org.example.a"):
        find_port("x", str(root))


@pytest.mark.parametrize("name", ["", "org", "vport0p2", "/dev/null", "../vport0p1"])
def test_what_is_no_port_is_not_found(root, name):
    plug(root, "vport0p1", "org.a")
    with pytest.raises(NoSuchPort):
        find_port(name, str(root))


def test_waiting_for_a_port_that_does_not_come_ends():
    with pytest.raises(TimeoutError, match=r"no port .org.nobody. in 0\.1 s"):
        wait_for_port("org.nobody", 0.1)


def test_broken_name_files_and_debug_texts_harm_nobody(root):
    plug(root, "vport0p1", "org.a")
    (root / "sys/class/virtio-ports/vport0p1/name").write_bytes(b"\xff\xfe\n")
    (root / "sys/kernel/debug/virtio-ports/vport0p1").write_text("guest_connected: perhaps\nbytes_sent: -1\nno colon\n")
    (root / "sys/class/virtio-ports/other").mkdir()
    (port,) = list_ports(str(root))
    assert (port.guest_open, port.sent) == (None, None)
