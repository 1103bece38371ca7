"""Tests of the documentation: its commands, code, settings and links, its examples, the notebook and the site."""
