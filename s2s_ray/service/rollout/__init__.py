"""The release that the service serves, and how it changes."""
