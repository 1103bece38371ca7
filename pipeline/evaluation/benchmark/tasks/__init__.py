"""Two tasks of lm-evaluation-harness that need no network, about the articles of a JSONL file.

`rondo_perplexity` measures how well a model predicts the articles. `rondo_questions` asks it to fill a blank in a
sentence of the article that it has just read. The YAML files define the tasks, and `documents` makes their documents.
"""
