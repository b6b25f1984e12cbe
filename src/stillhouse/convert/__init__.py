"""Conversion of other programs' model files to pipeline directories; needs the extra `train`."""
