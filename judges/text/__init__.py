"""Splits, compares and checks text in any language: sentences, words, tokens, scripts and languages.

Nothing here runs a model or knows of judges. The judges and the pipeline both use it, and so it needs no Ray or torch:
sentencex splits sentences, py3langid detects languages, and regex knows scripts and word boundaries.
"""
