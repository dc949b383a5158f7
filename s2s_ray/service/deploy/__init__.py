"""Programs and files from elsewhere that a deployment needs: HAProxy and the page's npm packages."""
