"""`remontoir bench run`: a job of a few lines of YAML becomes rows of results.

Owns jobs, what drives a server, and where results are kept. What they mean is loadtest/analysis.
"""
