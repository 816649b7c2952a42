"""A PCI function through the kernel's VFIO: /dev/vfio/GROUP and an IOMMU of type 1 (include/uapi/linux/vfio.h).

The process gets registers, interrupts and DMA of that function only.  When the process dies, for whatever reason, the
kernel stops the function's DMA, resets it and frees the group.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
from pathlib import Path
from struct import Struct
from typing import TYPE_CHECKING, Final, TypeVar

from virtserial.errors import ConfigError, PeerError
from virtserial.vfio_user.wire import (
    VFIO_DEVICE_FLAGS_PCI,
    VFIO_DEVICE_FLAGS_RESET,
    VFIO_DMA_MAP_FLAG_READ,
    VFIO_DMA_MAP_FLAG_WRITE,
    VFIO_IRQ_SET_ACTION_TRIGGER,
    VFIO_IRQ_SET_ACTION_UNMASK,
    VFIO_IRQ_SET_DATA_EVENTFD,
    VFIO_IRQ_SET_DATA_NONE,
    DeviceInfo,
    DmaUnmap,
    IrqInfo,
    IrqSet,
    RegionInfo,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

_Info = TypeVar("_Info", DeviceInfo, RegionInfo, IrqInfo)

VFIO_API_VERSION: Final = 0
VFIO_TYPE1_IOMMU: Final = 1
VFIO_TYPE1V2_IOMMU: Final = 3
VFIO_GROUP_FLAGS_VIABLE: Final = 1 << 0
VFIO_PCI_REQ_IRQ_INDEX: Final = 4
"""The kernel wants the function back, for an unbind or an unplug."""

# _IO(';', 100 + n)
_VFIO_GET_API_VERSION: Final = 0x3B64
_VFIO_CHECK_EXTENSION: Final = 0x3B65
_VFIO_SET_IOMMU: Final = 0x3B66
_VFIO_GROUP_GET_STATUS: Final = 0x3B67
_VFIO_GROUP_SET_CONTAINER: Final = 0x3B68
_VFIO_GROUP_GET_DEVICE_FD: Final = 0x3B6A
_VFIO_DEVICE_GET_INFO: Final = 0x3B6B
_VFIO_DEVICE_GET_REGION_INFO: Final = 0x3B6C
_VFIO_DEVICE_GET_IRQ_INFO: Final = 0x3B6D
_VFIO_DEVICE_SET_IRQS: Final = 0x3B6E
_VFIO_DEVICE_RESET: Final = 0x3B6F
_VFIO_IOMMU_MAP_DMA: Final = 0x3B71
_VFIO_IOMMU_UNMAP_DMA: Final = 0x3B72

_GROUP_STATUS: Final = Struct("=II")
"""struct vfio_group_status: argsz, flags."""
_DMA_MAP: Final = Struct("=IIQQQ")
"""struct vfio_iommu_type1_dma_map: argsz, flags, vaddr, iova, size."""

SYSFS_DEVICES: Final = Path("/sys/bus/pci/devices")
VFIO: Final = Path("/dev/vfio")


def group_of(address: str, devices: Path = SYSFS_DEVICES) -> int:
    """Return the IOMMU group of a PCI function that vfio-pci owns, by its full address (0000:00:05.0).

    Raises:
        ConfigError: the function does not exist, has no IOMMU, or has another driver.
    """
    function = devices / address
    if not function.is_dir():
        raise ConfigError(f"{address}: there is no such PCI function")
    driver = function / "driver"
    name = os.path.basename(os.readlink(driver)) if driver.is_symlink() else "no driver"
    if name != "vfio-pci":
        raise ConfigError(f"{address}: {name} has it, not vfio-pci: `virtserial guest bind {address}` changes that")
    group = function / "iommu_group"
    if not group.is_symlink():
        raise ConfigError(f"{address}: there is no IOMMU that keeps its DMA to this process's memory")
    return int(os.path.basename(os.readlink(group)))


class VfioFunction:
    """The DeviceAccess of one PCI function.

    Args:
        address: its full PCI address; vfio-pci must own it.

    Raises:
        ConfigError: see `group_of`; the group is in use, or shared with another driver's function; /dev/vfio is not
            accessible.
        PeerError: the kernel refuses an operation on the open function.
    """

    def __init__(self, address: str) -> None:
        self._address = address
        self._mappings: dict[int, mmap.mmap] = {}
        self._fds: list[int] = []
        self._regions: dict[int, RegionInfo] = {}
        group = group_of(address)
        try:
            self._container = self._open(VFIO / "vfio")
            self._group = self._open(VFIO / str(group))
            self._enter_group(group)
            name = bytearray(address.encode() + b"\0")
            self._device = self._ioctl(self._group, _VFIO_GROUP_GET_DEVICE_FD, name, "GET_DEVICE_FD")
            self._fds.append(self._device)
            info = self._asked(_VFIO_DEVICE_GET_INFO, DeviceInfo(DeviceInfo.FORMAT.size, 0, 0, 0), "DEVICE_GET_INFO")
            if not info.flags & VFIO_DEVICE_FLAGS_PCI:
                raise ConfigError(f"{address}: VFIO says that it is no PCI function")
            if info.flags & VFIO_DEVICE_FLAGS_RESET:
                self._ioctl(self._device, _VFIO_DEVICE_RESET, 0, "DEVICE_RESET")
            self._requested = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            self._fds.append(self._requested)
            if info.num_irqs > VFIO_PCI_REQ_IRQ_INDEX and self.irq_info(VFIO_PCI_REQ_IRQ_INDEX).count:
                self.set_irqs(VFIO_PCI_REQ_IRQ_INDEX, 0, [self._requested])
        except BaseException:
            self.close()
            raise

    def _open(self, path: Path) -> int:
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise ConfigError(f"{self._address}: {path}: {error.strerror}") from error
        self._fds.append(fd)
        return fd

    def _enter_group(self, group: int) -> None:
        container = self._container
        version = self._ioctl(container, _VFIO_GET_API_VERSION, 0, "GET_API_VERSION")
        if version != VFIO_API_VERSION:
            raise ConfigError(f"{self._address}: the kernel's VFIO has version {version}, known is {VFIO_API_VERSION}")
        status = bytearray(_GROUP_STATUS.pack(_GROUP_STATUS.size, 0))
        self._ioctl(self._group, _VFIO_GROUP_GET_STATUS, status, "GROUP_GET_STATUS")
        if not _GROUP_STATUS.unpack(status)[1] & VFIO_GROUP_FLAGS_VIABLE:
            raise ConfigError(f"{self._address}: another function of its IOMMU group {group} is still with its driver")
        self._ioctl(self._group, _VFIO_GROUP_SET_CONTAINER, Struct("=i").pack(container), "GROUP_SET_CONTAINER")
        kinds = (VFIO_TYPE1V2_IOMMU, VFIO_TYPE1_IOMMU)
        kind = next((each for each in kinds if self._ioctl(container, _VFIO_CHECK_EXTENSION, each, "CHECK")), None)
        if kind is None:
            raise ConfigError(f"{self._address}: its IOMMU is not of type 1 (is vfio_iommu_type1 loaded?)")
        self._ioctl(container, _VFIO_SET_IOMMU, kind, "SET_IOMMU")

    def _ioctl(self, fd: int, request: int, argument: int | bytes | bytearray, what: str) -> int:
        """Return the system call's result; the kernel writes its answer into a bytearray."""
        try:
            result = fcntl.ioctl(fd, request, argument)
        except OSError as error:
            raise PeerError(f"{self._address}: VFIO_{what}: {error.strerror}", error.errno or errno.EIO) from error
        return result if isinstance(result, int) else 0

    def _asked(self, request: int, question: _Info, what: str) -> _Info:
        answer = bytearray(question.pack())
        self._ioctl(self._device, request, answer, what)
        return type(question).unpack(bytes(answer))

    # DeviceAccess

    def region_info(self, index: int) -> RegionInfo:
        """Size (bytes) and file offset of a region; cached."""
        info = self._regions.get(index)
        if info is None:
            question = RegionInfo(RegionInfo.FORMAT.size, 0, index, 0, 0, 0)
            info = self._regions[index] = self._asked(_VFIO_DEVICE_GET_REGION_INFO, question, "GET_REGION_INFO")
        return info

    def irq_info(self, index: int) -> IrqInfo:
        """The number of vectors of an interrupt index."""
        return self._asked(_VFIO_DEVICE_GET_IRQ_INFO, IrqInfo(IrqInfo.FORMAT.size, 0, index, 0), "GET_IRQ_INFO")

    def region_read(self, region: int, offset: int, length: int) -> bytes:
        """Read bytes of a region; the kernel splits the access into aligned ones of up to 4 bytes."""
        info = self.region_info(region)
        self._check(info, offset, length)
        try:
            data = os.pread(self._device, length, info.offset + offset)
        except OSError as error:
            raise self._failed(f"reading {length} bytes at {offset:#x} of region {region}", error) from error
        if len(data) != length:
            raise PeerError(f"{self._address}: {len(data)} of {length} bytes at {offset:#x} of region {region}")
        return data

    def region_write(self, region: int, offset: int, data: bytes, posted: bool = False, more: bool = False) -> None:
        """Write registers; the kernel has stored them on return, posted or not."""
        info = self.region_info(region)
        self._check(info, offset, len(data))
        try:
            os.pwrite(self._device, data, info.offset + offset)
        except OSError as error:
            raise self._failed(f"writing {len(data)} bytes at {offset:#x} of region {region}", error) from error

    def _check(self, info: RegionInfo, offset: int, length: int) -> None:
        # All regions are in one file: after the end of one comes another.
        if offset < 0 or offset + length > info.size:
            raise PeerError(f"{self._address}: {length} bytes at {offset:#x} of a region of {info.size:#x}")

    def _failed(self, what: str, error: OSError) -> PeerError:
        return PeerError(f"{self._address}: {what}: {error.strerror}", error.errno or errno.EIO)

    def dma_map(
        self,
        iova: int,
        size: int,
        *,
        fd: int | None = None,
        offset: int = 0,
        readable: bool = True,
        writable: bool = True,
    ) -> None:
        """Map a file here and for the IOMMU; the kernel pins its pages (against RLIMIT_MEMLOCK) until `dma_unmap`.

        Raises:
            PeerError: there is no file, a limit is reached, or the address is beyond the IOMMU's.
        """
        if fd is None:
            raise PeerError(f"{self._address}: DMA memory without a file cannot be mapped by VFIO", errno.EINVAL)
        memory = mmap.mmap(fd, size, offset=offset)
        place = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        flags = readable * VFIO_DMA_MAP_FLAG_READ | writable * VFIO_DMA_MAP_FLAG_WRITE
        request = _DMA_MAP.pack(_DMA_MAP.size, flags, place, iova, size)
        self._ioctl(self._container, _VFIO_IOMMU_MAP_DMA, request, f"IOMMU_MAP_DMA of {size} bytes at {iova:#x}")
        self._mappings[iova] = memory

    def dma_unmap(self, iova: int, size: int) -> None:
        """Unmap memory from the device."""
        unmap = DmaUnmap(DmaUnmap.FORMAT.size, 0, iova, size)
        self._ioctl(self._container, _VFIO_IOMMU_UNMAP_DMA, bytearray(unmap.pack()), "IOMMU_UNMAP_DMA")
        self._mappings.pop(iova, None)

    def set_irqs(self, index: int, start: int, eventfds: Sequence[int]) -> None:
        """Signal these eventfds for vectors start, start + 1, ... of an interrupt index."""
        data = Struct(f"={len(eventfds)}i").pack(*eventfds)
        self._set_irqs(VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER, index, start, len(eventfds), data)

    def disable_irqs(self, index: int) -> None:
        """Stop signalling this index."""
        self._set_irqs(VFIO_IRQ_SET_DATA_NONE | VFIO_IRQ_SET_ACTION_TRIGGER, index, 0, 0)

    def unmask_irqs(self, index: int) -> None:
        """Unmask INTx, which the kernel masks when it fires."""
        self._set_irqs(VFIO_IRQ_SET_DATA_NONE | VFIO_IRQ_SET_ACTION_UNMASK, index, 0, 1)

    def _set_irqs(self, flags: int, index: int, start: int, count: int, data: bytes = b"") -> None:
        request = IrqSet(IrqSet.FORMAT.size + len(data), flags, index, start, count).pack() + data
        self._ioctl(self._device, _VFIO_DEVICE_SET_IRQS, request, f"DEVICE_SET_IRQS of index {index}")

    def fileno(self) -> int:
        """A descriptor that is readable when the kernel wants the function back."""
        return self._requested

    def poll(self) -> None:
        """Raise PeerError if the kernel wants the function back.
        """
        try:
            os.eventfd_read(self._requested)
        except BlockingIOError:
            return
        raise PeerError(f"{self._address}: the system wants the device back", errno.ENODEV)

    def close(self) -> None:
        """Close device, group and IOMMU; the kernel resets the function.  A second call does nothing."""
        for fd in reversed(self._fds):
            os.close(fd)
        self._fds.clear()
        self._mappings.clear()
