"""The HTTP interface: requests, responses, routes and the page."""
