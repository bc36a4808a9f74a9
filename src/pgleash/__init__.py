"""The face: what people and bots import and run."""
