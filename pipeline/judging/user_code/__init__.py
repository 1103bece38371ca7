"""Loads the user's own judges and preferences, and checks them before a run.

`loading` imports the class or function that a setting names as `module:name`. `class_settings` checks `judge.settings`
against the constructor of a class. `judge_trial` tries a judge on one small article.
"""
