"""What the gateway counts, and the page that Prometheus reads."""
