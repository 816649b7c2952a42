"""-device: texts as QEMU 11.1.3 printed them for the same arguments."""

import pytest

from virtserial.errors import ConfigError
from virtserial.options.device_options import device_help, parse_device

IDENTIFIER = (
    "Parameter 'id' expects an identifier\n"
    "Identifiers consist of letters, digits, '-', '.', '_', starting with a letter."
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "Parameter 'driver' is missing"),
        ("id=x", "Parameter 'driver' is missing"),
        ('{"max_ports":4}', "Parameter 'driver' is missing"),
        ('{"driver":5}', "Parameter 'driver' is missing"),
        ("foo,id=x", "'foo' is not a valid device model name"),
        ("virtio-serial-device", "'virtio-serial-device' is not supported by virtserial yet"),
        ("virtio-serial,foo=1", "Property 'virtio-serial-pci.foo' not found"),
        ("virtserialport,foo=1", "Property 'virtserialport.foo' not found"),
        ("virtconsole,foo=1", "Property 'virtconsole.foo' not found"),
        ("virtioconsole,max_ports=1", "Property 'virtconsole.max_ports' not found"),
        ('{"driver":"virtio-serial-pci","max_ports":4,"foo":1}', "Property 'virtio-serial-pci.foo' not found"),
        ("virtio-serial-pci,max_ports=x", "Parameter 'max_ports' expects integer"),
        ("virtio-serial-pci,max_ports=", "Parameter 'max_ports' expects integer"),
        ("virtio-serial-pci,max_ports", "Parameter 'max_ports' expects integer"),
        ("virtio-serial-pci,max_ports=-1", "Parameter 'max_ports' expects uint32_t"),
        ("virtio-serial-pci,vectors=5000000000", "Parameter 'vectors' expects uint32_t"),
        ("virtserialport,nr=4294967296", "Parameter 'nr' expects uint32_t"),
        ('{"driver":"virtio-serial-pci","max_ports":"4"}', "Parameter 'max_ports' expects uint64"),
        ('{"driver":"virtio-serial-pci","max_ports":1.5}', "Parameter 'max_ports' expects uint64"),
        ('{"driver":"virtio-serial-pci","max_ports":true}', "Parameter 'max_ports' expects uint64"),
        ("virtio-serial-pci,event_idx=maybe", "Parameter 'event_idx' expects 'on' or 'off'"),
        (
            '{"driver":"virtio-serial-pci","event_idx":"on"}',
            "Invalid parameter type for 'event_idx', expected: boolean",
        ),
        ('{"driver":"virtio-serial-pci","event_idx":1}', "Invalid parameter type for 'event_idx', expected: boolean"),
        ('{"driver":"virtserialport","name":5}', "Invalid parameter type for 'name', expected: string"),
        ("virtio-serial-pci,id=1x", IDENTIFIER),
        ("virtserialport,id=taken", "Duplicate ID 'taken' for device"),
        (
            "virtio-serial-pci,resize-order=diagonal",
            "Property 'virtio-serial-pci.resize-order' doesn't take value 'diagonal'",
        ),
    ],
)
def test_refused(text, message):
    with pytest.raises(ConfigError) as caught:
        parse_device(text, {"taken"})
    assert str(caught.value) == message


def test_controller_defaults():
    device = parse_device("virtio-serial")
    assert (device.driver, device.id, device.bus) == ("virtio-serial-pci", None, None)
    assert device.is_controller
    assert device.properties == {
        "max_ports": 31,
        "vectors": None,
        "unplug": "auto",
        "iommu_platform": None,
        "event_idx": True,
        "indirect_desc": True,
        "packed": False,
        "in_order": False,
        "queue_reset": True,
        "emergency-write": True,
        "socket": None,
        "page-per-vq": False,
        "disable-legacy": "auto",
        "disable-modern": False,
        "resize-order": "cols-rows",
    }


def test_controller():
    device = parse_device("virtio-serial-pci,id=ser0,max_ports=0x2,vectors=0,noevent_idx,bus=pci.0,addr=5,socket=/s")
    assert (device.id, device.bus) == ("ser0", "pci.0")
    properties = device.properties
    assert (properties["max_ports"], properties["vectors"], properties["event_idx"]) == (2, 0, False)
    assert properties["socket"] == "/s"


def test_port_of_the_fedora_page():
    device = parse_device("virtserialport,bus=ser0.0,chardev=portchar0,id=port0,name=org.fedoraproject.port.0,nr=4")
    assert (device.driver, device.id, device.bus) == ("virtserialport", "port0", "ser0.0")
    assert device.properties == {"chardev": "portchar0", "name": "org.fedoraproject.port.0", "nr": 4}
    assert not device.is_controller
    assert not device.is_console


@pytest.mark.parametrize("driver", ["virtconsole", "virtioconsole"])
def test_console(driver):
    device = parse_device(driver)
    assert (device.driver, device.is_console) == ("virtconsole", True)
    assert device.properties == {"chardev": None, "name": None, "nr": None, "cols": 0, "rows": 0}


def test_json_as_libvirt_writes_it():
    device = parse_device(
        '{"driver":"virtio-serial-pci","id":"virtio-serial0","bus":"pci.3","addr":"0x0","max_ports":16}'
    )
    assert (device.id, device.bus, device.properties["max_ports"]) == ("virtio-serial0", "pci.3", 16)


@pytest.mark.parametrize(
    "option",
    ["multifunction=on", "ioeventfd=off", "ats=on", "rombar=-1", "rombar=0", "romfile="],
)
def test_options_of_the_vmm_side_pass_by(option):
    assert parse_device(f"virtio-serial-pci,{option}") == parse_device("virtio-serial-pci")


def test_empty_name_is_a_name():
    assert parse_device("virtserialport,name=").properties["name"] == ""


def test_help():
    text = device_help("virtio-serial")
    assert text.startswith("virtio-serial-pci options:\n")
    assert "  max_ports=<uint32>      - ports the guest can see, 1 to 511 (default: 31)\n" in text
    assert "  event_idx=<bool>        - offer VIRTIO_F_EVENT_IDX (default: on)\n" in text
    assert "  rows=<uint32>           - rows of the console's window (default: 0)\n" in device_help("virtconsole")
    with pytest.raises(ConfigError, match="'foo' is not a valid device model name"):
        device_help("foo")
