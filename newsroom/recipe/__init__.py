"""How the corpora and the two models of the newsroom were made, and how the models are evaluated."""
