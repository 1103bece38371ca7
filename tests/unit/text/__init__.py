"""Tests of judges/text: sentences, words, tokens, scripts and languages."""
