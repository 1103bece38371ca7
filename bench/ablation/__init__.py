"""The parts of `bench/study.py`, which measures what each choice of a configuration is worth.

`arms` lists the arms, `sharing` copies what two arms have in common, `figures` reads the figures of a run, `pooling`
puts articles and seeds together, and `page` and `plots` show the result.
"""
