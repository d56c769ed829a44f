"""`python -m loadtest`: measures the product from outside, over HTTP, and the core in virtual time.

Imports `scheduler` only. Servers are started as commands, as a user would, on a core of their own.
"""
