"""The vfio-user protocol: a PCI device served over a UNIX socket.

Specification: docs/interop/vfio-user.rst of QEMU (docs/vfio-user.rst of libvfio-user), protocol version 0.0.
Names of messages and fields are the specification's; constants keep their C names (VFIO_USER_* and, from
<linux/vfio.h>, VFIO_*).
"""
