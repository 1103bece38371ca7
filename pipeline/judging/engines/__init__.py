"""Engines for judges that score texts instead of generating them, in the interface of `inference/base.py`.

`likelihood` gives log-probabilities of given texts under a causal LM, on the trainer's article trees. `reward` gives
the number that a sequence-classification model has for a conversation.
They are here because they need the code of `training`, which `inference` may not import.
"""
