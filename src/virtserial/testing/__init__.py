"""Public helpers for tests of devices, drivers and host back ends."""
