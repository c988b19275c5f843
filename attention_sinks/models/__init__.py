"""Model classes with attention sinks, one module per architecture, named for its `config.model_type`."""
