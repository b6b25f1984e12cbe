"""Inputs of networks: recorded while pictures are generated, read from files, or made up from a graph."""
