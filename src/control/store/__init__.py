"""Where the control plane keeps its state: one SQLite file, and the feed that tells of changes."""
