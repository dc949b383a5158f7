"""The application builder and the configuration file for `serve deploy`."""
