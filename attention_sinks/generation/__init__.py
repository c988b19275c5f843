"""What generate does differently for an injected model."""
