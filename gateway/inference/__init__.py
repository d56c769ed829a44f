"""One inference request: from its bytes to the dispatcher, and from a result to its answer."""
