"""Fuzzing: seeded and bounded. Nothing here is part of the ordinary tests but what test files in this room run of it."""
