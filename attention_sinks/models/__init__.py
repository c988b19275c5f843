"""What is particular to an architecture, one module each, named for its `config.model_type`."""
