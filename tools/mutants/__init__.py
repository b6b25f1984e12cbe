"""Seeded faults in the source, and whether the tests find them."""
