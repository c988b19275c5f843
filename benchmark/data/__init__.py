"""The texts that are read: a corpus of your choice, a novel, the questions of MT-Bench, and a list of English words."""
