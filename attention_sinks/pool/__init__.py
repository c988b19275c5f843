"""Many conversations on one model: a running batch that they join and leave, and a store where they sleep."""
