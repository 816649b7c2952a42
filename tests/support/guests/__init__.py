"""What the tests with a real QEMU and a real Linux guest share: devices, guests and host ends to test with."""
