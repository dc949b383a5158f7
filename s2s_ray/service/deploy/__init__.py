"""Third-party programs and files that a deployment needs: HAProxy and the npm packages of the page."""
