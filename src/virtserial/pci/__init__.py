"""A virtio device as a PCI function (virtio 1.3, section 4.1): configuration space, registers in BARs, interrupts."""
