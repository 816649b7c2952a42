"""virtserial: virtio-serial as a process of its own, beside an unmodified VMM.

Importing this package loads nothing else: the command line and the device process start in milliseconds.
docs/architecture.md tells what each room is for.
"""

__version__ = "0.1.0"
