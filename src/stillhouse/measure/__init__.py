"""Instruments, never opinions: what machine this is, how long a thing takes, how far two results lie apart."""
