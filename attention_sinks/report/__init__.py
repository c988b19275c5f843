"""What is known about a model before its weights are loaded: whether and how it streams, and what that takes."""
