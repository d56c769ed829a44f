"""The gateway's side of the workers: their door, who they are, their clocks."""
