"""Drivers that break the rules: cases as data, and the devices they are run against.

    python3 -m virtserial.testing.hostile          prints the table

`cases` says what the driver does and what must come of it, `steps` in which words; `driver` does it to any `Machine`:
our device in this process (`in_memory`), our device behind a vfio-user socket (`over_vfio_user`), and QEMU's own by
its qtest protocol (`qemu_oracle`).  Where QEMU's device does something else, the case says what, and why ours does not.
"""
