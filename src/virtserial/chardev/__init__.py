"""Host back ends, as QEMU's -chardev has them: one file per kind.

The keeper opens a `Chardev` (base.py), which yields `Connection`s; the worker makes a `HostEnd` of each
(virtserial.host_end).  A port served by Python code starts at virtserial.handler.
"""
