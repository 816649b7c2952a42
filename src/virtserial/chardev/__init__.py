"""Host back ends, as QEMU's -chardev has them: one file per kind.

The keeper opens a `Chardev` (base.py), which yields `Connection`s; the worker makes a `HostEnd` (host_end.py) of each
with `open_host_end`.  `handler` is the place to start for a port served by Python code.
"""
