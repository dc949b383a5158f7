"""Which release the service answers with, and how it changes."""
