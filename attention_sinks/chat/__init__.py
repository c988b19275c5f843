"""Chats that never end: a model answers turn after turn in one stream."""
