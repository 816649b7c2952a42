"""The worker: moves bytes between guests and host ends, and opens nothing."""
