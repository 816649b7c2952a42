"""The drop-in for QEMU's command line: what of it virtserial serves, what QEMU gets instead, how both start."""
