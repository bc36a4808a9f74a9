"""C only: nothing here is for Python."""
