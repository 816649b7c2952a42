"""The driver half: a virtio console driver in user space, over vfio-user or the kernel's VFIO."""
