"""Time, memory and overhead of steps, long calls and `generate`, beside plain Transformers."""
