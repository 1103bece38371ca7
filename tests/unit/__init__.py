"""Tests of single modules, in the folders of their packages. They start neither Ray, nor vLLM, nor a run."""
