"""QEMU's option syntax: keyval.py reads it, chardev_options.py and device_options.py say what it means."""
