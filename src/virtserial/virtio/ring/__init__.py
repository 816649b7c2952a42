"""Virtqueues: the rings of descriptors between driver and device, a folder for each format."""
