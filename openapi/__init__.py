"""The HTTP contract, openapi.yaml, packaged for the gateway to serve. No code lives here."""
