"""Helpers that several test files share, one noun a module."""
