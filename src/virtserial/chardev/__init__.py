"""Host back ends, as QEMU's -chardev has them: one file per kind.

The keeper opens a `Chardev` (base.py), which yields `Connection`s; the worker makes a `HostEnd` of each
(virtserial.host_end).  virtserial.handler is the place to start for a port served by Python code.
"""
