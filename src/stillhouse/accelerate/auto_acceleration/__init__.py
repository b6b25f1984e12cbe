"""The configuration files and directories of Auto-Acceleration, read as they are."""
