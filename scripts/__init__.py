"""What a developer runs from the repository's root, and no user needs."""
