"""Cases of bad input, each with a name and the line that the user then sees.

`{at}` in a line stands for the path of the bad input.
"""
