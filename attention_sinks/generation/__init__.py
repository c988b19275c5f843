"""These modules change `generate` for a model with attention sinks, and give it a decoding loop of our own."""
