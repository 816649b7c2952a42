"""From QEMU's words to QEMU's words: what is ours, what stays, and in which form."""

from __future__ import annotations

import contextlib
import json
import os
import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st

from virtserial.dropin.command_line import WITHOUT_ARGUMENT, split
from virtserial.dropin.planner import make_plan
from virtserial.errors import ConfigError

RUN = "/run/vm"
CONTROL = ["-chardev", "socket,id=virtserial-control,fd={control}", "-qmp", "chardev:virtserial-control"]
BARE = "-nodefaults -machine pc,memory-backend=m -object memory-backend-memfd,id=m,size=64M"
"""A machine that needs nothing arranged, so that only what a test is about is seen."""


def plan_of(line, architecture="x86_64"):
    streams = []

    def connect(name):
        streams.append(name)
        return 99 + len(streams)

    words = line if isinstance(line, list) else shlex.split(line)
    plan = make_plan(words, run_directory=RUN, connect=connect, architecture=architecture)
    assert len(set(streams)) == len(streams), "each stream is asked for once"
    return plan, streams


def words_of(line, architecture="x86_64"):
    """QEMU's words without those of the control connection, which comes last."""
    plan, streams = plan_of(line, architecture)
    assert plan.untouched is None
    assert streams[-1] == "control"
    assert plan.words[-4:] == [word.format(control=99 + len(streams)) for word in CONTROL]
    return plan.words[:-4]


def device_json(device_id=None, name=None, **properties):
    identity = {"id": device_id} if device_id else {}
    socket = {"type": "unix", "path": f"{RUN}/{name or device_id}.sock"}
    return json.dumps({"driver": "vfio-user-pci", **identity, **properties, "socket": socket}, separators=(",", ":"))


UNTOUCHED = {
    "nothing at all": "",
    "a disk": "-nodefaults disk.img",
    "help": "-help -device virtio-serial",
    "version": "--version -device virtio-serial",
    "help on a device": "-device virtio-serial,help",
    "list of devices": "-device help -device virtio-serial",
    "list of machines": "-machine help -device virtio-serial",
    "probing without a machine": "-S -no-user-config -nodefaults -nographic -machine none,accel=kvm:tcg "
    "-qmp unix:/x,server=on,wait=off -pidfile /y -daemonize",
    "an option that lacks its argument": "-device virtio-serial -device",
    "a controller of QEMU's only": "-nodefaults -device virtio-serial-device",
    "a monitor of QEMU's only": "-monitor vc",
    "a port without any controller": "-nodefaults -device virtserialport",
    "incoming migration without a controller": "-incoming defer -qmp stdio",
}


@pytest.mark.parametrize("case", UNTOUCHED)
def test_what_does_not_concern_us_is_passed_as_it_is(case):
    words = shlex.split(UNTOUCHED[case])
    plan, streams = plan_of(words)
    assert plan.words == words
    assert plan.untouched
    assert (streams, plan.chardevs, plan.monitors, plan.machine.controllers) == ([], {}, [], [])


CONTROLLERS = {
    "the short name": ("virtio-serial", device_json(None, "virtio-serial0")),
    "an id": ("virtio-serial-pci,id=a", device_json("a")),
    "driver as a key": ("driver=virtio-serial,id=a", device_json("a")),
    "modern only": ("virtio-serial-pci-non-transitional,id=a", device_json("a")),
    "a place": (
        "virtio-serial,id=a,bus=pci.0,addr=0x7.1,multifunction=on",
        device_json("a", bus="pci.0", addr="0x7.1", multifunction=True),
    ),
    "numbers have types": (
        "virtio-serial,id=a,acpi-index=0x10,rombar=0,romfile=",
        device_json("a", **{"acpi-index": 16, "rombar": 0, "romfile": ""}),
    ),
    "our half's properties": (
        "virtio-serial,id=a,max_ports=4,vectors=0,iommu_platform=off,ioeventfd=off,disable-legacy=on",
        device_json("a"),
    ),
    "JSON": (
        '{"driver":"virtio-serial-pci","id":"a","max_ports":7,"bus":"pci.3","addr":"0x0","acpi-index":2}',
        device_json("a", **{"bus": "pci.3", "addr": "0x0", "acpi-index": 2}),
    ),
    "a socket of the user's": (
        "virtio-serial,id=a,socket=/tmp/s",
        '{"driver":"vfio-user-pci","id":"a","socket":{"type":"unix","path":"/tmp/s"}}',
    ),
}


@pytest.mark.parametrize("case", CONTROLLERS)
def test_controller_becomes_a_vfio_user_device_in_its_place(case):
    given, expected = CONTROLLERS[case]
    words = [*shlex.split(BARE), "-device", "e1000", "-device", given, "-device", "nec-usb-xhci"]
    assert words_of(words) == [
        *shlex.split(BARE), "-device", "e1000", "-device", expected, "-device", "nec-usb-xhci"
    ]  # fmt: skip


def test_controller_given_as_key_value_still_comes_before_devices_given_as_json():
    """QEMU plugs all of the former in first, and gives PCI slots in that order."""
    net = '{"driver":"e1000"}'
    words = words_of([*shlex.split(BARE), "-device", net, "-S", "-device", "virtio-serial,id=a", "-device", "e1000e"])
    assert words[len(shlex.split(BARE)) :] == ["-device", device_json("a"), "-device", net, "-S", "-device", "e1000e"]


def controllers_of(line):
    plan, _ = plan_of(f"{BARE} {line}")
    return [
        (controller.bus, controller.max_ports, controller.vectors, sorted(controller.ports))
        for controller in plan.machine.controllers
    ]


PLACES = {
    "without bus= the controller added last": (
        "-device virtio-serial,id=a -device virtio-serial,id=b,max_ports=4 -device virtserialport",
        [("a.0", 31, 32, []), ("b.0", 4, 5, [1])],
    ),
    "with bus= the one named": (
        "-device virtio-serial,id=a -device virtio-serial,id=b,vectors=2 -device virtserialport,bus=a.0,nr=9",
        [("a.0", 31, 32, [9]), ("b.0", 31, 2, [])],
    ),
    "buses without an id are counted": (
        "-device virtio-serial -device virtio-serial -device virtserialport,bus=virtio-serial-bus.0",
        [("virtio-serial-bus.0", 31, 32, [1]), ("virtio-serial-bus.1", 31, 32, [])],
    ),
    "buses of QEMU's are counted too": (
        "-device virtio-serial-device -device virtio-serial -device virtserialport,bus=virtio-serial-bus.1",
        [("virtio-serial-bus.1", 31, 32, [1])],
    ),
    "JSON is plugged in after all key=value": (
        """-device '{"driver":"virtserialport","bus":"a.0"}' -device virtio-serial,id=a""",
        [("a.0", 31, 32, [1])],
    ),
    "-set": (
        "-device virtio-serial,id=a -set device.a.max_ports=3 -device virtserialport,id=p -set device.p.nr=2",
        [("a.0", 3, 4, [2])],
    ),
    "-global": (
        "-global virtio-serial-pci.vectors=7 -global driver=virtio-serial-device,property=max_ports,value=5 "
        "-device virtio-serial,id=a -device virtio-serial,id=b,vectors=1",
        [("a.0", 5, 7, []), ("b.0", 5, 1, [])],
    ),
    "-global on JSON": (
        """-global virtio-serial-pci.vectors=7 -device '{"driver":"virtio-serial","id":"a"}'""",
        [("a.0", 31, 7, [])],
    ),
    "virtioconsole and a console's number": (
        "-device virtio-serial,id=a -device virtioconsole -device virtconsole",
        [("a.0", 31, 32, [0, 1])],
    ),
}


@pytest.mark.parametrize("case", PLACES)
def test_ports_are_on_the_controller_that_qemu_would_take(case):
    line, expected = PLACES[case]
    assert controllers_of(line) == expected


def test_set_of_our_devices_is_not_passed_and_global_is():
    words = words_of(f"{BARE} -device virtio-serial,id=a -set device.a.max_ports=3 -global virtio-serial-pci.vectors=1")
    assert words == [
        *shlex.split(BARE), "-device", device_json("a"), "-global", "virtio-serial-pci.vectors=1"
    ]  # fmt: skip


KEPT = {
    "a back end that only QEMU has": "-chardev spicevmc,id=c,name=vdagent -device virtserialport,bus=a.0,chardev=c",
    "a hub of such a back end": "-chardev vc,id=c -chardev hub,id=h,chardevs.0=c -device virtserialport,chardev=h",
    "tn3270": "-chardev socket,id=c,host=h,port=1,server=on,tn3270=on -device virtserialport,chardev=c",
    "credentials that we cannot use": "-object tls-creds-anon,id=t,endpoint=server "
    "-chardev socket,id=c,host=h,port=1,server=on,tls-creds=t -device virtserialport,chardev=c",
}


@pytest.mark.parametrize("case", KEPT)
def test_controller_with_a_port_that_needs_qemu_stays_qemu_s_with_all_its_ports(case):
    line = (
        f"{BARE} -device virtio-serial,id=a {KEPT[case]} -chardev null,id=n -device virtserialport,bus=a.0,chardev=n "
        "-device virtio-serial,id=b -device virtserialport,bus=b.0"
    )
    plan, _ = plan_of(line)
    remaining = line.replace("-device virtio-serial,id=b -device virtserialport,bus=b.0", "")
    assert plan.words[:-6] == shlex.split(remaining)
    assert [controller.bus for controller in plan.machine.controllers] == ["b.0"]
    assert list(plan.chardevs) == []
    (remark,) = plan.remarks
    assert remark.startswith("-device virtio-serial,id=a: stays QEMU's with its ports: ")


def test_a_controller_with_packed_rings_or_in_order_is_ours():
    plan, _ = plan_of(f"{BARE} -device virtio-serial,id=a,packed=on -device virtio-serial,in_order=on")
    assert [(each.packed, each.in_order) for each in plan.machine.controllers] == [(True, False), (False, True)]
    assert "packed" not in " ".join(plan.words)
    assert plan.remarks == []


PORT = "-device pcie-root-port,id=rp,slot=1 -device pcie-pci-bridge,id=bridge,bus=rp"


@pytest.mark.parametrize(
    ("device", "legacy", "modern"),
    [
        ("virtio-serial", True, True),
        ("virtio-serial,bus=pcie.0", True, True),
        ("virtio-serial,bus=rp", False, True),
        ("virtio-serial,bus=bridge,addr=1", True, True),
        ("virtio-serial,bus=rp,disable-legacy=off", True, True),
        ("virtio-serial,disable-legacy=on", False, True),
        ("virtio-serial,disable-modern=on", True, False),
        ("virtio-serial,iommu_platform=on", False, True),
        ("virtio-serial-pci-transitional,bus=rp", True, True),
        ("virtio-serial-pci-non-transitional", False, True),
    ],
)
def test_the_bus_decides_on_the_legacy_interface_as_in_qemu(device, legacy, modern):
    plan, _ = plan_of(f"{BARE} {PORT} -device {device},ats=on,page-per-vq=on")
    (controller,) = plan.machine.controllers
    assert (controller.legacy, controller.modern, controller.page_per_vq) == (legacy, modern, True)
    assert "disable" not in " ".join(plan.words)


@pytest.mark.parametrize(
    ("device", "text"),
    [
        ("virtio-serial,bus=rp,disable-modern=on", "device cannot work as neither modern nor legacy mode is enabled"),
        (
            "virtio-serial-pci-transitional,iommu_platform=on",
            "VIRTIO_F_IOMMU_PLATFORM was supported by neither legacy nor transitional device",
        ),
    ],
)
def test_interfaces_that_no_device_has_are_refused(device, text):
    with pytest.raises(ConfigError, match=text):
        plan_of(f"{BARE} {PORT} -device {device}")


def test_newest_controller_s_owner_is_known():
    ours, theirs = "-device virtio-serial,id=a", "-device virtio-serial-device,id=b"
    assert plan_of(f"{BARE} {theirs} {ours}")[0].newest_is_qemus is False
    assert plan_of(f"{BARE} {ours} {theirs}")[0].newest_is_qemus is True


def test_chardevs_are_owned_by_who_uses_them():
    plan, _ = plan_of(
        f"{BARE} -chardev null,id=port -chardev null,id=serial -chardev null,id=gdb -chardev null,id=json "
        "-chardev null,id=filter -chardev null,id=unused -chardev vc,id=screen -chardev null,id=set "
        "-device virtio-serial -device virtserialport,chardev=port -serial chardev:serial -gdb chardev:gdb "
        """-device '{"driver":"isa-serial","chardev":"json"}' """
        "-object filter-mirror,id=f,netdev=n,queue=tx,outdev=filter -device isa-serial,id=s -set device.s.chardev=set"
    )
    assert list(plan.chardevs) == ["port", "unused"]
    assert plan.chardev_texts == {"port": "null,id=port", "unused": "null,id=unused"}
    passed = [word for word in plan.words if word.startswith("null,id=")]
    assert passed == ["null,id=serial", "null,id=gdb", "null,id=json", "null,id=filter", "null,id=set"]


def test_parts_of_a_hub_go_with_it():
    line = "-chardev null,id=a -chardev null,id=b -chardev hub,id=h,chardevs.0=a,chardevs.1=b"
    ours, _ = plan_of(f"{BARE} -device virtio-serial {line} -device virtserialport,chardev=h")
    theirs, _ = plan_of(f"{BARE} -device virtio-serial {line} -serial chardev:h")
    assert list(ours.chardevs) == ["a", "b", "h"]
    assert list(theirs.chardevs) == []


def test_multiplexed_chardev_has_a_front_for_each_of_qemu_s_users():
    plan, streams = plan_of(
        f"{BARE} -device virtio-serial -chardev socket,id=m,path=/x,server=on,wait=off,mux=on "
        "-serial chardev:m -device virtconsole,chardev=m -device isa-serial,chardev=m,index=1 -mon chardev=m"
    )
    assert streams == ["front/m/0", "front/m/1", "monitor/0", "control"]
    assert plan.words[5:-4] == [
        "-device", device_json(None, "virtio-serial0"),
        "-chardev", "socket,id=virtserial-front-m-0,fd=100", "-chardev", "socket,id=virtserial-front-m-1,fd=101",
        "-serial", "chardev:virtserial-front-m-0",
        "-device", "driver=isa-serial,chardev=virtserial-front-m-1,index=1",
        "-chardev", "socket,id=virtserial-monitor-0,fd=102", "-qmp", "chardev:virtserial-monitor-0",
    ]  # fmt: skip
    assert plan.chardevs["m"].mux_quit, "Ctrl-a x ends QEMU"


def monitors_of(line):
    plan, streams = plan_of(line)
    return [tuple(monitor) for monitor in plan.monitors], plan, streams


def test_monitors_are_ours_and_each_has_its_connection():
    monitors, plan, streams = monitors_of(
        f"{BARE} -chardev pty,id=p -mon chardev=p,mode=control,pretty=on -qmp unix:/q,server=on,wait=off "
        "-monitor telnet:127.0.0.1:99,server=on,wait=off -qmp-pretty chardev:c -chardev null,id=c "
        "-object monitor-hmp,id=h,chardev=d -chardev null,id=d"
    )
    assert monitors == [
        ("p", "control", True),
        ("compat_monitor0", "control", False),
        ("compat_monitor1", "readline", False),
        ("c", "control", True),
        ("d", "readline", False),
    ]
    assert streams == ["monitor/0", "monitor/1", "monitor/2", "monitor/3", "monitor/4", "control"]
    assert set(plan.chardevs) == {"p", "c", "d", "compat_monitor0", "compat_monitor1"}
    assert plan.words[5:7] == ["-chardev", "socket,id=virtserial-monitor-0,fd=100"]
    assert "monitor-hmp" not in " ".join(plan.words)


def test_monitor_that_only_qemu_can_show_stays_its_own():
    plan, _ = plan_of(f"{BARE} -monitor vc -device virtio-serial -mon chardev=v -chardev vc,id=v -qmp none")
    assert plan.monitors == []
    assert [remark.partition(":")[0] for remark in plan.remarks] == ["-monitor vc", "-mon chardev=v"]
    assert "-qmp none -device" not in " ".join(plan.words)
    for words in ("-monitor vc", "-mon chardev=v", "-chardev vc,id=v", "-qmp none"):
        assert words in " ".join(plan.words)


MACHINE = "-machine memory-backend=m -object memory-backend-memfd,id=m,size=64M"
DEFAULTS = {
    "a window has a monitor": ("", "-monitor vc"),
    "a monitor was asked for": ("-monitor none", ""),
    "a QMP monitor was asked for": ("-qmp none", ""),
    "a serial line with a monitor": ("-serial mon:vc", ""),
    "no defaults": ("-nodefaults", ""),
    "-nographic without defaults": ("-nographic -nodefaults", ""),
    "-nographic with a monitor": ("-nographic -monitor none", ""),
    "an object that is a monitor": ("-chardev vc,id=v -object monitor-hmp,id=h,chardev=v", ""),
}


def test_defaults_are_those_of_a_file_too(tmp_path):
    """A network or a monitor in a -readconfig file leaves the default ones in place."""
    (tmp_path / "vm.cfg").write_text('[netdev "n"]\n type = "user"\n[chardev "v"]\n backend = "vc"\n')
    words = words_of(f"{MACHINE} -device virtio-serial,id=a -readconfig {tmp_path}/vm.cfg")
    assert words[6:] == shlex.split("-netdev id=n,type=user -chardev id=v,backend=vc -monitor vc -net nic -net user")


@pytest.mark.parametrize("case", DEFAULTS)
def test_defaults_that_our_words_would_switch_off_are_said(case):
    given, added = DEFAULTS[case]
    words = words_of(f"{MACHINE} -device virtio-serial,id=a {given}")
    assert words == shlex.split(f"{MACHINE} -device '{device_json('a')}' {given} {added}")


def test_nographic_shares_standard_input_between_serial_line_and_monitor():
    monitors, plan, streams = monitors_of(f"{MACHINE} -device virtio-serial,id=a -nographic")
    assert monitors == [("serial0", "readline", False)]
    assert streams == ["front/serial0/0", "monitor/0", "control"]
    assert plan.words[6:-4] == shlex.split(
        "-nographic -chardev stdio,id=virtserial-terminal,signal=off "
        "-chardev socket,id=virtserial-front-serial0-0,fd=100 -serial chardev:virtserial-front-serial0-0 "
        "-chardev socket,id=virtserial-monitor-0,fd=101 -qmp chardev:virtserial-monitor-0"
    )
    assert plan.chardevs["serial0"].mux
    assert not plan.chardevs["serial0"].signal


def test_nographic_with_a_serial_line_has_the_monitor_on_standard_input():
    monitors, plan, _ = monitors_of(f"{MACHINE} -device virtio-serial,id=a -nographic -serial null")
    assert monitors == [("compat_monitor0", "readline", False)]
    assert "stdio,id=virtserial-terminal" in plan.words


def test_serial_line_shared_with_a_monitor():
    line = f"{BARE} -device virtio-serial,id=a -serial null -serial mon:unix:/x,server=on,wait=off -parallel mon:pty"
    monitors, _, streams = monitors_of(line)
    assert monitors == [("serial1", "readline", False), ("parallel0", "readline", False)]
    assert streams == ["front/serial1/0", "front/parallel0/0", "monitor/0", "monitor/1", "control"]


REFUSED = {
    "unknown bus": ("-device virtio-serial -device virtserialport,bus=b", "-device virtserialport,bus=b: Bus 'b' not"),
    "port before its controller": (
        "-device virtserialport -device virtio-serial",
        "-device virtserialport: No 'virtio-serial-bus' bus found for device 'virtserialport'",
    ),
    "unknown chardev": (
        "-device virtio-serial -device virtserialport,chardev=c",
        "-device virtserialport,chardev=c: Property 'virtserialport.chardev' can't find value 'c'",
    ),
    "chardev taken by a port": (
        "-device virtio-serial -chardev null,id=c -device virtserialport,chardev=c -device virtconsole,chardev=c",
        "-device virtconsole,chardev=c: Property 'virtconsole.chardev' can't take value 'c': chardev 'c' is already",
    ),
    "chardev taken by a line of QEMU's": (
        "-device virtio-serial -chardev null,id=c -device virtserialport,chardev=c -serial chardev:c",
        "-device virtserialport,chardev=c: chardev 'c' is already in use",
    ),
    "chardev taken by a monitor": (
        "-device virtio-serial -chardev null,id=c -device virtserialport,chardev=c -mon chardev=c",
        "-mon chardev=c: chardev 'c' is already in use",
    ),
    "chardev of two monitors": ("-chardev null,id=c -mon c -mon c,mode=control", "-mon c,mode=control: chardev 'c' is"),
    "multiplexed chardev with too many users": (
        "-chardev null,id=c,mux=on -mon c -serial chardev:c -serial chardev:c -device virtio-serial "
        "-device virtserialport,chardev=c -device virtserialport,chardev=c",
        "-mon c: too many uses of multiplexed chardev 'c' (maximum is 4)",
    ),
    "wrong chardev": (
        "-device virtio-serial -chardev socket,id=c,path=x,reconnect-ms=1,server=on -device virtserialport,chardev=c",
        "-chardev socket,id=c,path=x,reconnect-ms=1,server=on: 'reconnect-ms' option is incompatible with",
    ),
    "chardev id twice": (
        "-device virtio-serial -chardev null,id=c -chardev null,id=c",
        "-chardev null,id=c: Duplicate ID 'c' for chardev",
    ),
    "device id twice": ("-device virtio-serial,id=a -device e1000,id=a", "-device virtio-serial,id=a: Duplicate"),
    "number taken": (
        "-device virtio-serial -device virtserialport,nr=1 -device virtserialport,nr=1",
        "-device virtserialport,nr=1: virtio-serial-bus: A port already exists at id 1",
    ),
    "too many ports": (
        "-device virtio-serial,max_ports=512",
        "-device virtio-serial,max_ports=512: maximum ports supported: 511",
    ),
    "unknown property": ("-device virtio-serial,a=b", "-device virtio-serial,a=b: Property 'virtio-serial-pci.a' not"),
    "wrong type in JSON": (
        """-device '{"driver":"virtio-serial","max_ports":"3"}'""",
        """-device {"driver":"virtio-serial","max_ports":"3"}: Parameter 'max_ports' expects uint64""",
    ),
    "JSON that is none": ("-device virtio-serial -object {", "-object {: JSON parse error, "),
    "unknown descriptor set": (
        "-device virtio-serial -chardev file,id=f,path=/dev/fdset/3 -device virtserialport,chardev=f",
        "-chardev file,id=f,path=/dev/fdset/3: Could not open '/dev/fdset/3'",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_is_refused_before_anything_starts(case):
    line, text = REFUSED[case]
    with pytest.raises(ConfigError) as error:
        plan_of(line)
    assert str(error.value).startswith(text)


def test_inherited_descriptors_are_known():
    plan, _ = plan_of(
        f"{BARE} -add-fd fd=9,set=2,opaque=rw:/x -add-fd set=2,fd=10 -device virtio-serial "
        "-chardev file,id=f,path=/dev/fdset/2,logfile=/dev/fdset/2 -device virtserialport,chardev=f "
        "-chardev socket,id=s,fd=12 -device virtserialport,chardev=s -netdev tap,id=t,fd=13 "
        "-chardev socket,id=q,fd=14 -serial chardev:q"
    )
    assert plan.descriptors == {12}
    assert [(member.fd, member.set, member.opaque) for member in plan.descriptor_sets] == [
        (9, 2, "rw:/x"),
        (10, 2, None),
    ]
    assert plan.chardevs["f"].path == "/proc/self/fd/9"
    assert plan.words.count("-add-fd") == 2


def test_options_from_a_pipe_reach_qemu_though_nothing_is_ours():
    reader, writer = os.pipe()
    with open(writer, "w") as file:
        file.write('[rtc]\n base = "utc"\n')
    plan, _ = plan_of(f"-nodefaults -readconfig /dev/fd/{reader}")
    os.close(reader)
    assert plan.untouched
    assert plan.words == ["-nodefaults", "-rtc", "base=utc"]


def test_s390x_keeps_its_own_device():
    assert plan_of("-nodefaults -device virtio-serial", "s390x")[0].untouched


VALUE = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12)
PLAIN = st.sampled_from(sorted(WITHOUT_ARGUMENT - {"h", "help", "version", "nographic", "nodefaults"}))
OTHERS = st.one_of(
    st.tuples(PLAIN).map(lambda option: [f"-{option[0]}"]),
    st.tuples(PLAIN).map(lambda option: [f"--{option[0]}"]),
    st.tuples(st.sampled_from(["name", "uuid", "append", "drive", "netdev", "bios", "rtc", "boot", "fw_cfg"]), VALUE)
    .filter(lambda option: "help" not in option[1] and "?" not in option[1])
    .map(lambda option: [f"-{option[0]}", option[1]]),
    VALUE.filter(lambda word: word[:1] not in ("-", "")).map(lambda word: [word]),
)


@given(st.lists(OTHERS, max_size=6), st.lists(OTHERS, max_size=6))
def test_words_that_are_not_ours_pass_in_order(before, after):
    flat_before = [word for words in before for word in words]
    flat_after = [word for words in after for word in words]
    words = words_of([*shlex.split(BARE), *flat_before, "-device", "virtio-serial,id=a", *flat_after])
    assert words == [*shlex.split(BARE), *flat_before, "-device", device_json("a"), *flat_after]


@given(st.lists(st.text(max_size=8), max_size=8))
def test_splitting_loses_no_word(words):
    options = split(words)
    assert options is None or [word for option in options for word in option.emitted] == words


@given(st.lists(st.sampled_from(["-device", "-chardev", "-set", "-global", "-m", "-object", "{}", "a=b,c", ",,", "="])))
def test_no_words_at_all_make_the_planner_fail_otherwise_than_by_an_error_of_the_operator(words):
    with contextlib.suppress(ConfigError):
        plan_of(words)


@pytest.mark.parametrize(("line", "expected"), [("-accel kvm", True), ("", False)])
def test_unplug_is_as_asked_for_whatever_the_accelerator(line, expected):
    word = "on" if expected else "off"
    for device in (f"virtio-serial,id=a,unplug={word}", f'{{"driver":"virtio-serial-pci","id":"a","unplug":"{word}"}}'):
        plan, _ = plan_of([*shlex.split(f"{BARE} {line}"), "-device", device])
        assert plan.machine.controllers[0].unplug == expected
        assert "unplug" not in " ".join(plan.words)


@pytest.mark.parametrize("arrival", ["-incoming tcp:0:4444", "-incoming defer", "-loadvm x"])
def test_a_guest_that_arrives_is_held_and_our_state_is_taken_out_of_the_stream(arrival):
    plan, _ = plan_of(shlex.split(f"-device virtio-serial {arrival}"))
    assert (plan.start.is_incoming, plan.start.autostart) == (True, True)
    assert "-S" in plan.words
    where = plan.words[plan.words.index("-incoming" if "incoming" in arrival else "-loadvm") + 1]
    assert where == arrival.split()[1]
    state = plan.words[plan.words.index("-S") - 1]
    assert state.startswith("dbus-vmstate,id=virtserial-state,addr=unix:path=")
    assert state.endswith("/state.sock,id-list=virtserial")


def test_who_asks_for_a_held_guest_gets_one():
    plan, _ = plan_of(shlex.split("-device virtio-serial -incoming defer -S"))
    assert not plan.start.autostart
    assert plan.words.count("-S") == 1


def test_hosts_are_taken_only_where_a_stream_arrives():
    plan, _ = plan_of(shlex.split("-device virtio-serial -incoming defer"))
    plan.take_hosts_from("/run/other")
    assert plan.start.take_hosts_from == "/run/other"
    for arguments in ("-device virtio-serial", "-device virtio-serial -loadvm x"):
        plan, _ = plan_of(shlex.split(arguments))
        with pytest.raises(ConfigError, match="is for a guest that arrives by -incoming"):
            plan.take_hosts_from("/run/other")
