"""The device process: the keeper, which opens and keeps, and the worker, which moves bytes."""
