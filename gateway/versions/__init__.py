"""The model repository while the gateway serves: versions come, take over and go back."""
