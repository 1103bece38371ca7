"""Splits, compares and checks text in any language: sentences, words, tokens, scripts and languages.

The judges and the pipeline both use it, so it needs no Ray or torch: sentencex splits sentences, py3langid detects
languages, and regex knows scripts and word boundaries.
"""
