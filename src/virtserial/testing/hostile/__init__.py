"""Our device as machines for the cases of virtserial.conformance: in this process, and in its own.

    python3 -m virtserial.testing.hostile          prints what became of every case, also on QEMU's own device

Where QEMU's device does something else, the case says what, and why ours does not.
"""
