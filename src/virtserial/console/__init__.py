"""The console device, type 3 (virtio 1.3, section 5.3): its messages, its ports, and what the device does with them."""
