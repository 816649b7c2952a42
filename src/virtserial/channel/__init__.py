"""The channel between keeper and worker: what they say to each other, and how."""
