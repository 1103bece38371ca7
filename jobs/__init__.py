"""The commands of `rondo`: each module checks the arguments of its command, runs it, and prints the result."""
