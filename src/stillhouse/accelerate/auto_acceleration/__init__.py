"""Reading of the config files and folders of Auto-Acceleration (github.com/visionhong/Auto-Acceleration)."""
