"""Scores the summaries of articles with a judge. The stages `scores`, `evaluation` and `second_scores` use this code.

`exam` has a judge answer an article's questions from each summary, and counts the right answers. `scored` has a judge
without questions give its scores. `step` chooses between them. Both add the column `scores`, so pairs and evaluations
do not care which it was. `text_faults` measures faults of the text beside the judge's scores.
"""
