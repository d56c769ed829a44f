"""What executes a loaded model. The weights live in the device's pages."""
