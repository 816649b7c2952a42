"""-readconfig: which files are read in place, and as which words."""

from __future__ import annotations

import os

import pytest

from virtserial.dropin.command_line import split, words_of
from virtserial.dropin.readconfig import parse, read_config_files
from virtserial.errors import ConfigError

PLAIN = """# a comment
[drive "d0"]
  file = "/a,b"
  if = "none"

[device "net"]
  driver = "virtio-net-pci"
  bus="pcie.0"
"""
OURS = PLAIN + """
[machine]
  type = "q35"
[memory]
  size = "1024"
[smp-opts]
  cpus = "2"
[device "ser0"]
  driver = "virtio-serial-pci"
[chardev "c0"]
  backend = "null"
[device]
  driver = "virtserialport"
  chardev = "c0"
[global]
  driver = "virtserialport"
  property = "name"
  value = "org.x"
"""


def read(text, tmp_path):
    path = tmp_path / "vm.cfg"
    path.write_text(text)
    return words_of(read_config_files(split(["-S", "-readconfig", str(path), "-usb"]))), str(path)


@pytest.mark.parametrize("text", ["", PLAIN, "not a [config", '[device "x"\n', OURS + "\nkey = value\n"])
def test_file_without_anything_for_us_or_that_qemu_would_refuse_is_passed_as_it_is(text, tmp_path):
    words, path = read(text, tmp_path)
    assert words == ["-S", "-readconfig", path, "-usb"]


def test_file_with_our_devices_is_read_in_place(tmp_path):
    words, _ = read(OURS, tmp_path)
    assert words == [
        "-S",
        "-drive", "id=d0,file=/a,,b,if=none",
        "-device", "id=net,driver=virtio-net-pci,bus=pcie.0",
        "-machine", "type=q35",
        "-m", "size=1024",
        "-smp", "cpus=2",
        "-device", "id=ser0,driver=virtio-serial-pci",
        "-chardev", "id=c0,backend=null",
        "-device", "driver=virtserialport,chardev=c0",
        "-global", "driver=virtserialport,property=name,value=org.x",
        "-usb",
    ]  # fmt: skip


@pytest.mark.parametrize("group", ['[chardev "c"]', '[mon "m"]', "[memory]", "[machine]", "[numa]", '[add-fd]'])
def test_file_that_has_what_the_rest_may_refer_to_is_read(group, tmp_path):
    words, _ = read(f'{group}\n  key = "value"\n', tmp_path)
    assert "-readconfig" not in words


def test_missing_file_is_qemu_s_to_complain_of():
    assert words_of(read_config_files(split(["-readconfig", "/no/such/file"]))) == ["-readconfig", "/no/such/file"]


def through_a_pipe(text):
    reader, writer = os.pipe()
    with open(writer, "w") as file:
        file.write(text)
    try:
        return words_of(read_config_files(split(["-readconfig", f"/dev/fd/{reader}"])))
    finally:
        os.close(reader)


def test_pipe_is_read_in_any_case_since_nobody_can_read_it_again():
    assert through_a_pipe('[rtc]\n base = "utc"\n') == ["-rtc", "base=utc"]
    with pytest.raises(ConfigError, match="parse error"):
        through_a_pipe("nonsense")


def test_values_and_groups_as_qemu_takes_them():
    groups = parse('[a "b c"]\n\tk\t=\t""\n k2="x=y"\n[machine]\n')
    assert [tuple(group) for group in groups] == [("a", "b c", {"k": "", "k2": "x=y"}), ("machine", None, {})]
