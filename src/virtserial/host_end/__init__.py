"""Host ends: the half of a chardev that moves bytes, in the worker."""
