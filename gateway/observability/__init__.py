"""What is told of requests afterwards: stories, traces, the log."""
