"""These modules run in place of the forwards of an injected model."""
