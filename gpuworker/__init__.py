"""One process per device: it carries out actions in their windows and reports what happened.

It owns the pages, weights and engines of one device. It must never decide: no batching, eviction,
retry or reordering by choice (adr/0005). It shares only `scheduler`'s vocabulary with the gateway.
"""
