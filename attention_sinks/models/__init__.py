"""The table of architectures, and modules named for those `config.model_type` that need code of their own."""
