"""Inputs on which networks are calibrated, compared and timed: recorded, read from files, or generated from a graph."""
