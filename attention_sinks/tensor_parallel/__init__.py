"""One model that several processes share: the first one leads, and the others follow."""
