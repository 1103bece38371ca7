"""The stages: plain functions, one for each table or policy of a round. They never import each other.

`base` defines what a stage declares. `articles` reads the corpus. `questions` has a judge write questions about the
articles. `summaries` samples summaries from a policy. `scores` has the judge answer the questions from each summary.
`pairs` makes pairs of summaries, and replays earlier pairs. `references` and `drift` add log-probabilities. `policy`
registers the base and trains the next policy. `external_pairs` reads pairs that were made elsewhere.
"""
