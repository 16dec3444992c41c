"""What is done to a model, and what comes of it."""
