"""An OpenAI-compatible server over a pool of conversations; it needs the extra `[serve]`."""
