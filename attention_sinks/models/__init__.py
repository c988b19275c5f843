"""The table of architectures, and what is written out for some of them, one module each, named for its type."""
