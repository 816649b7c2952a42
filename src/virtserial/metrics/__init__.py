"""What this machine's ports do, in figures: for Prometheus, for scripts."""
