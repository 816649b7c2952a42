"""The virtio standard: features, device status, descriptor chains, the split virtqueue of both sides."""
