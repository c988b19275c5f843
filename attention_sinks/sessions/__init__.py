"""Conversations that sleep between their turns: by name in memory and in a folder, one at a time for its user alone."""
