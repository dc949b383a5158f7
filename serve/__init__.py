"""What `serve deploy` takes: the application builder and its configuration file."""
