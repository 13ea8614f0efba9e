"""Faults at every place of a copy, on real servers: what happens then, and what must not."""
