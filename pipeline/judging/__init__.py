"""Turns summaries into preferences: questions about articles, scores of summaries, and pairs to train on.

`factory` makes the judge that the settings name. For a judge of the user's, `user_code` imports its class,
`class_settings` checks its settings, and `judge_trial` tries it before a run. `question_generation` asks the judge for
questions and checks them. `scoring` has the judge answer them from each summary, and `text_counts` counts words and
invalid characters. `preference` decides which of two scored summaries is better. `pair_selection` chooses and weighs
the pairs of an article. `tallies` names the counts that all of this adds to records.
"""
