"""Migration and snapshots of a QEMU whose virtio-serial is ours: our state in QEMU's own stream (docs/migration.md)."""
