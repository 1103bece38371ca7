"""A judge at work: questions about articles, scores of summaries, and which pairs are trained on.

`factory` makes the judge that the settings name. `question_generation` asks it for questions and checks them, `scoring`
puts the questions to summaries. `preference` says which of two scored summaries is better, `pair_selection` which pairs
of an article are trained on and how much each weighs. `tallies` has the names of what all of this counts.
"""
