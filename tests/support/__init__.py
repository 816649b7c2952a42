"""What tests of several rooms share: devices, guests, drivers and clients to test with."""
