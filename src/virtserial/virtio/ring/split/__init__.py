"""The split virtqueue (virtio 1.3, section 2.7), both sides."""
