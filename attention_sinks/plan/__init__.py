"""What one call will do to the streams of a batch, worked out from integers before anything is touched."""
