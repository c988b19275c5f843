"""What can be particular to an architecture, and what of it holds for one injected model."""
