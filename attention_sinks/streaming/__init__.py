"""What runs in place of the forwards of an injected model."""
