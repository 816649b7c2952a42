"""What runs: controllers, their buses, the ports on them, and which chardev a port uses.  QEMU's rules and texts."""
