"""Writes report.html, and gives `rondo view` its data: the same page over the same tables.

`overview` collects the figures of a run, `index` finds articles by filter and by text, `articles` reads what is known
about one article, `passages` says which sentence of an article a question comes from, and `html` puts the page together
from `assets/`. The page draws its plots with Chart.js (MIT), which is part of the file.
"""
