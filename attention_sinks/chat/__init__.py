"""Conversations without end."""
