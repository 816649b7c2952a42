"""The saved state of a device: what it consists of, and its form as bytes."""
