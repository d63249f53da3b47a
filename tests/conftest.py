import hypothesis

# How long an example takes is the machine's business, which may be busy with something else.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")
