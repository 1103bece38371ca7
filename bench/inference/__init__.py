"""Measures the throughput of sampling summaries and of judging them."""
