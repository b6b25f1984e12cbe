import stillhouse  # noqa: F401  # first: switches off the telemetry of the others
