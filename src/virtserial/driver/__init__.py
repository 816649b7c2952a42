"""The driver half: a virtio console driver in user space, over vfio-user (and whatever else gives register access)."""
