"""Virtqueues: the rings of descriptors between driver and device, both sides."""
