"""How the guest's memory becomes one that another process can map."""

from __future__ import annotations

import shlex

import pytest

from virtserial.dropin import memory
from virtserial.dropin.command_line import split, words_of
from virtserial.errors import ConfigError

ADDED = "-object memory-backend-memfd,id={id},size={size},share=on -machine memory-backend={id}"


def arrange(line, architecture="x86_64"):
    """(QEMU's words, what is added to them, remarks)."""
    options = split(shlex.split(line))
    remarks = []
    added = memory.make_shareable(options, architecture, remarks)
    return words_of(options), added, remarks


SIZES = {
    "": "128M",
    "-m 512": "512M",
    "-m 512M": "512M",
    "-m size=1G": "1024M",
    "-m 1.5G": "1536M",
    "-m 0.5": None,
    "-m 256,slots=2,maxmem=1G": "256M",
    "-m slots=2,maxmem=1G": "128M",
    "-m 64 -m 96": "96M",
    "-m 64 -m slots=1,maxmem=1G": "64M",
    "-m 0": "128M",
    "-m 100001k": "100008K",
    "-m 0x40": "64M",
    "-machine q35,memory.size=67108864": "64M",
    "-machine memory.size=64M -m 32": "32M",
    "-m nonsense": None,
}


@pytest.mark.parametrize("line", SIZES)
def test_m_alone_gets_a_back_end_of_the_size_qemu_would_take(line):
    words, added, remarks = arrange(line)
    size = {"-m 0.5": "512K"}.get(line, SIZES[line])
    assert words == shlex.split(line)
    assert added == (shlex.split(ADDED.format(id="pc.ram", size=size)) if size else [])
    assert remarks == []


MACHINES = {
    ("x86_64", "pc"): "pc.ram",
    ("x86_64", "pc-i440fx-9.1"): "pc.ram",
    ("x86_64", "pc-q35-11.1"): "pc.ram",
    ("x86_64", "type=pc+pve0"): "pc.ram",
    ("x86_64", "accel=tcg,type=pc-i440fx-9.2+pve1"): "pc.ram",
    ("x86_64", "hpet=off,smm=off,type=q35+pve0"): "pc.ram",
    ("x86_64", "type=pc-q35-10.1+pve0"): "pc.ram",
    ("x86_64", "microvm,pcie=on"): "microvm.ram",
    ("aarch64", "virt-10.1,gic-version=3"): "mach-virt.ram",
    ("riscv64", "type=virt"): "riscv_virt_board.ram",
}


@pytest.mark.parametrize(("architecture", "machine"), MACHINES)
def test_back_end_has_the_name_that_qemu_gives_its_own(architecture, machine):
    _, added, _ = arrange(f"-M {machine}", architecture)
    assert added == shlex.split(ADDED.format(id=MACHINES[architecture, machine], size="128M"))


@pytest.mark.parametrize(
    ("architecture", "line"),
    [("x86_64", "-M isapc"), ("x86_64", "-machine type=isapc+pve0"), ("ppc64", ""), ("aarch64", "-m 1G")],
)
def test_machine_that_is_not_known_is_left_alone_and_said(architecture, line):
    words, added, remarks = arrange(line, architecture)
    assert (words, added) == (shlex.split(line), [])
    assert len(remarks) == 1


BACKENDS = {
    "memory-backend-ram,id=m,size=64M": "memory-backend-memfd,id=m,size=64M,share=on",
    "qom-type=memory-backend-ram,id=m,size=64M": "memory-backend-memfd,id=m,size=64M,share=on",
    "memory-backend-ram,id=m,size=64M,share=off,prealloc=on,host-nodes=0,host-nodes=1,policy=bind": (
        "memory-backend-memfd,id=m,size=64M,prealloc=on,host-nodes=0,host-nodes=1,policy=bind,share=on"
    ),
    "memory-backend-file,id=m,mem-path=/dev/shm/a,,b,size=64M,share=on,align=2M,discard-data=on": (
        "memory-backend-memfd,id=m,size=64M,share=on"
    ),
    "memory-backend-shm,id=m,size=64M": "memory-backend-memfd,id=m,size=64M,share=on",
    "memory-backend-memfd,id=m,size=64M": "memory-backend-memfd,id=m,size=64M",
    "memory-backend-memfd,id=m,size=64M,share=off,hugetlb=on": "memory-backend-memfd,id=m,size=64M,hugetlb=on,share=on",
    '{"qom-type":"memory-backend-ram","id":"m","size":67108864,"host-nodes":[0,1]}': (
        '{"qom-type":"memory-backend-memfd","id":"m","size":67108864,"host-nodes":[0,1],"share":true}'
    ),
    '{"qom-type":"memory-backend-memfd","id":"m","size":1}': '{"qom-type":"memory-backend-memfd","id":"m","size":1}',
    "secret,id=m,data=memory-backend-ram": "secret,id=m,data=memory-backend-ram",
}


@pytest.mark.parametrize("given", BACKENDS)
def test_back_end_becomes_a_shared_memfd_with_everything_else_kept(given):
    words, added, remarks = arrange(f"-M q35,memory-backend=m -object '{given}'")
    assert words == ["-M", "q35,memory-backend=m", "-object", BACKENDS[given]]
    assert added == []
    assert len(remarks) == (given.startswith("secret"))


def test_memory_backend_may_be_said_anywhere():
    for machine in ("-machine memory-backend=m", "-M pc -M memory-backend=m", "-machine type=pc,memory_backend=m"):
        _, added, _ = arrange(f"{machine} -object memory-backend-ram,id=m,size=1G")
        assert added == []


def test_numa_nodes_have_their_own():
    line = "-m 128 -numa node,memdev=a -numa node,memdev=b -object memory-backend-ram,id=a,size=64M -object {}"
    words, added, _ = arrange(line.format("memory-backend-file,id=b,size=64M,mem-path=/tmp"))
    assert added == []
    assert [word for word in words if word.startswith("memory-backend")] == [
        "memory-backend-memfd,id=a,size=64M,share=on",
        "memory-backend-memfd,id=b,size=64M,share=on",
    ]


def test_memory_of_a_dimm_is_shared_beside_that_of_the_machine():
    dimm = "-object memory-backend-ram,id=d,size=1G -device pc-dimm,memdev=d"
    words, added, _ = arrange(f"-m 1G,slots=1,maxmem=2G {dimm}")
    assert "memory-backend-memfd,id=d,size=1G,share=on" in words
    assert added == shlex.split(ADDED.format(id="pc.ram", size="1024M"))


@pytest.mark.parametrize("device", ["nvdimm,memdev=d", "virtio-pmem-pci,memdev=d", "ivshmem-plain,memdev=d"])
def test_files_that_are_no_ram_stay(device):
    line = f"-object memory-backend-file,id=d,size=1G,mem-path=/x,share=on -device {device}"
    words, _, remarks = arrange(line)
    assert words == shlex.split(line)
    assert remarks == []


@pytest.mark.parametrize("about", ["readonly=on", "rom=on", "pmem=on"])
def test_file_whose_content_counts_stays_and_is_said(about):
    line = f"-M memory-backend=d -object memory-backend-file,id=d,size=1G,mem-path=/x,share=on,{about}"
    words, _, remarks = arrange(line)
    assert words == shlex.split(line)
    assert about in remarks[0]


@pytest.mark.parametrize("about", ["offset=4096", "offset=4096,share=on", "pmem=on", "readonly=on,share=off"])
def test_memory_in_which_a_controller_would_find_nothing_is_refused_where_there_is_one(about):
    backend = f"memory-backend-file,id=d,size=1G,mem-path=/x,{about}"
    with pytest.raises(ConfigError, match=f"^-object {backend}: .* cannot reach the guest's memory there: "):
        arrange(f"-M memory-backend=d -object {backend}")
    remarks = []
    words = ["-object", backend, "-M", "memory-backend=d"]
    assert memory.make_shareable(split(words), "x86_64", remarks, has_controller=False) == []
    assert len(remarks) == 1


def test_mem_path_becomes_a_memfd_and_prealloc_stays(tmp_path):
    words, added, remarks = arrange(f"-m 64 -mem-path {tmp_path} -mem-prealloc")
    assert words == ["-m", "64", "-mem-prealloc"]
    assert added == shlex.split(ADDED.format(id="pc.ram", size="64M"))
    assert str(tmp_path) in remarks[0]


def test_huge_pages_stay_huge(monkeypatch):
    monkeypatch.setattr(memory, "huge_pages", lambda _: [("hugetlb", "on"), ("hugetlbsize", "2M")])
    words, added, remarks = arrange("-m 64 -mem-path /hp")
    assert "id=pc.ram,size=64M,share=on,hugetlb=on,hugetlbsize=2M" in added[1]
    assert (words, remarks) == (["-m", "64"], [])
    words, _, _ = arrange("-M memory-backend=m -object memory-backend-file,id=m,size=64M,mem-path=/hp")
    assert words[3] == "memory-backend-memfd,id=m,size=64M,share=on,hugetlb=on,hugetlbsize=2M"
    shared = memory.share_object({"qom-type": "memory-backend-file", "id": "m", "size": 1 << 26, "mem-path": "/hp"})
    assert shared == {
        "qom-type": "memory-backend-memfd", "id": "m", "size": 1 << 26, "share": True, "hugetlb": True,
        "hugetlbsize": 2 << 20,
    }  # fmt: skip


def test_file_systems_without_huge_pages_have_none(tmp_path):
    assert memory.huge_pages(str(tmp_path)) == []
    assert memory.huge_pages("/no/such/place") == []


def test_name_of_qemu_s_own_back_end_may_be_taken():
    _, added, _ = arrange("-object memory-backend-ram,id=pc.ram,size=64M")
    assert added == shlex.split(ADDED.format(id="virtserial-ram", size="128M"))


def test_object_add_at_run_time_is_shared_in_the_same_way():
    assert memory.share_object({"qom-type": "memory-backend-ram", "id": "m", "size": 5, "share": False}) == {
        "qom-type": "memory-backend-memfd", "id": "m", "size": 5, "share": True,
    }  # fmt: skip
    for other in ({"qom-type": "secret", "id": "s"}, {"qom-type": "memory-backend-file", "pmem": True}, {}):
        assert memory.share_object(other) == other
