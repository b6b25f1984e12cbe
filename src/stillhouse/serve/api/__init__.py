"""The doors: bytes of each protocol to orders, and tickets back to bytes."""
