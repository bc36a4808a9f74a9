"""The control plane: decides, remembers and answers."""
