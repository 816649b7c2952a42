"""QEMU's monitor for a machine: QMP (qmp.py, commands.py) and HMP (hmp.py), on any chardev (server.py)."""
