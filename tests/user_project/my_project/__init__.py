"""A project that has one of each kind of what lmech can be given."""
