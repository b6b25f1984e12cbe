"""The same picture from the same checkpoint by several engines, timed in turns."""
