"""Decides whether a run goes on after a round.

`rules.py` compares a round's figures with the bounds of the setting `stop`. `kl.py` estimates one of these figures, the
KL divergence from the base.
"""
