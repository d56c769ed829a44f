"""The live page's feed: one sampler for all who look, and nothing while nobody does."""
