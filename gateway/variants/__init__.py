"""Groups of variants: which member answers, and what is learnt of that."""
