"""The whole state of the streams of one batch: buffers, counters, what can be undone, files."""
