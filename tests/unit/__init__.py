"""Tests of single modules, in the folders of their packages: no Ray, no vLLM, no drivers."""
