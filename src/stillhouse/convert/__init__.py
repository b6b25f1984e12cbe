"""Model files of other programs converted to pipeline directories; needs the extra `train`."""
