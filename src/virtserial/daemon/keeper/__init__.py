"""The keeper: opens, listens, accepts, and keeps a worker running."""
