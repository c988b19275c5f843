"""The changes to `generate` for a model with attention sinks, and a decoding loop of our own."""
