"""What a person may give that is wrong, each case by its name, with the line that the person then sees.

`{at}` in a line stands for the place of what was given.
"""
