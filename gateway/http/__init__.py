"""HTTP: the server, its protocol, TLS, limits, bodies, and the routes beside inference."""
