"""The audit log and the recordings: written through the journal, read, verified and replayed here."""
