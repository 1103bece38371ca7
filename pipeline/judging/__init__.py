"""Turns summaries into preferences: questions about articles, scores of summaries, and pairs to train on.

`factory` makes the judge that the settings name; `user_code` loads, checks and tries a judge of the user's. `engines`
holds the engines of judges that score texts instead of generating them. `question_generation` asks the judge for
questions and checks them. `scoring` has the judge score each summary, and measures its text. `preference` decides which
of two scored summaries is better. `pair_selection` chooses and weighs the pairs of an article. `tallies` names the
counts that all of this adds to records. `remedies` says what to change when summaries cannot be used.
"""
