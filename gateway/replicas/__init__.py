"""The other gateways of a sharded deployment: whether they answer, and what they are asked."""
