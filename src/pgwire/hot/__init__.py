"""The only compiled code: framing, pipeline, masking, journal, relay."""
