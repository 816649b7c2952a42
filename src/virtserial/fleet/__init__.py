"""A fleet of hosts whose ports are reached by HOST/VM/PORT, over a NATS broker (docs/fleet.md)."""
