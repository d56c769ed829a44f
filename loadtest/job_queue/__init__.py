"""Benchmark jobs on many hosts: a leader that keeps the queue, followers that run when idle.

Owns who runs what and when, and that nothing is lost. What a job measures is none of its business.
"""
