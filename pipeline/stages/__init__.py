"""The stages: plain functions, one for each table or policy of a round. They never import each other.

`base` says what a stage declares. `articles` reads the corpus, `questions` asks a judge about it, `summaries` samples
the policy, `scores` puts the questions to the summaries, `pairs` prefers and replays, `references` and `drift` add
log-probabilities, `policy` registers the base and trains the next policy. `external_pairs` reads pairs made elsewhere.
"""
