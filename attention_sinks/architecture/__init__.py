"""These modules hold what can be particular to an architecture, and what of it is true of one injected model."""
