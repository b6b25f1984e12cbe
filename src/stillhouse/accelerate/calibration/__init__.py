"""Inputs of components: recorded while pictures are generated, read from files, or generated from a graph."""
