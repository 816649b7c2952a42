"""The folder of a virtual machine's sockets: held while it is used, removed when nobody does."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest
from support.places import ENVIRONMENT

from virtserial.dropin.run_folder import choose_run_folder, hold, make_run_folder, run_folder_of
from virtserial.errors import ConfigError


def name(number):
    return f"virtserial-{number:012x}"


@pytest.fixture
def parent(tmp_path):
    (tmp_path / "virtserial-else").mkdir()
    (tmp_path / "another").mkdir()
    return tmp_path


@pytest.mark.process
def test_folder_that_a_killed_process_left_is_removed_at_the_next_start(parent):
    program = (
        "import sys, time; from virtserial.dropin.run_folder import make_run_folder; "
        f"make_run_folder({str(parent / name(1))!r}); print('made', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", program], env=ENVIRONMENT, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"made\n"
        (parent / name(1) / "ser0.sock").touch()
        os.close(make_run_folder(str(parent / name(2))))
        assert (parent / name(1)).is_dir(), "it is in use"
        process.kill()
    os.close(make_run_folder(str(parent / name(3))))
    assert sorted(os.listdir(parent)) == ["another", name(3), "virtserial-else"]


def test_every_holder_counts(parent):
    first = make_run_folder(str(parent / name(1)))
    second = hold(str(parent / name(1)))
    os.close(first)
    os.close(make_run_folder(str(parent / name(2))))
    assert (parent / name(1)).is_dir()
    os.close(second)
    os.close(make_run_folder(str(parent / name(3))))
    assert not (parent / name(1)).exists()


def test_folder_with_a_bound_socket_stays(parent, folder):
    (folder / name(1)).mkdir()
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(folder / name(1) / "s"))
        os.close(make_run_folder(str(folder / name(2))))
        assert (folder / name(1)).is_dir()


def test_link_is_not_followed(parent):
    (parent / name(1)).symlink_to(parent / "another")
    os.close(make_run_folder(str(parent / name(2))))
    assert (parent / name(1)).is_symlink()
    assert (parent / "another").is_dir()


def test_folder_that_is_there_or_cannot_be_made_is_refused(parent):
    os.close(make_run_folder(str(parent / name(1))))
    held = hold(str(parent / name(1)))
    with pytest.raises(ConfigError, match="File exists"):
        make_run_folder(str(parent / name(1)))
    os.close(held)
    with pytest.raises(ConfigError, match="No such file"):
        make_run_folder(str(parent / "nowhere" / name(1)))


def test_each_choice_is_another():
    assert choose_run_folder() != choose_run_folder()


@pytest.mark.process
def test_folder_of_a_machine_is_found_by_its_process(tmp_path):
    folder = tmp_path / name(5)
    device = f'{{"driver":"vfio-user-pci","socket":{{"type":"unix","path":"{folder}/ser0.sock"}}}}'
    program = "print('runs', flush=True); input()"
    command = [sys.executable, "-c", program, "-device", device]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"runs\n"
        assert run_folder_of(str(process.pid)) == str(folder)
        process.stdin.close()
    with pytest.raises(ConfigError, match="is no QEMU with a virtio-serial controller of virtserial's"):
        run_folder_of(str(os.getpid()))
    with pytest.raises(ConfigError, match=f"process {process.pid}: No such file or directory"):
        run_folder_of(str(process.pid))


def test_folder_may_be_named_itself(tmp_path):
    assert run_folder_of(str(tmp_path)) == str(tmp_path)
    with pytest.raises(ConfigError, match="no run directory of a virtserial-qemu"):
        run_folder_of(str(tmp_path / "absent"))
