"""The packed virtqueue (virtio 1.3, section 2.8), both sides."""
