"""Compares the scores of a judge with human ratings."""
