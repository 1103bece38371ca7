"""`rondo export`, `rondo merge` and `rondo push`: give a run's pairs and models to other tools and other people.

`formats.py` writes pairs in the forms of TRL, UltraFeedback, LLaMA-Factory and Argilla. `hub.py` speaks to the Hugging
Face hub; `model_folder.py` and `data_folder.py` put together what is pushed there.
"""
