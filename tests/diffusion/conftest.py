from hypothesis import settings

# Properties are timed as a whole suite; a single example may meet a busy machine.
settings.register_profile("no_deadline", deadline=None)
settings.load_profile("no_deadline")
