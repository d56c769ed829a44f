"""Programs that measure what parts of the gateway cost a request, in µs."""
