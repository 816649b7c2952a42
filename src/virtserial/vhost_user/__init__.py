"""vhost-user: the back end's half of the protocol, by which a VMM keeps the PCI function and hands over the queues.

Specification: QEMU's docs/interop/vhost-user.rst.  Names are its own; constants keep their C names.
"""
