"""What results mean: where the time of a model goes, what it costs, which configuration to buy.

Owns figures derived from results and from graphs, and their pages. Measures nothing but a machine's
ceilings and a model's own operators; what servers did is read from the results' database.
"""
