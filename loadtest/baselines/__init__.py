"""What others would write in an afternoon, to measure ours against. Not part of the product."""
