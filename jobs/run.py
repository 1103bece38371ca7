"""`python -m jobs.run CONFIG [NAME=VALUE]...`: what `ray job submit` starts. The same as `rondo run`."""

import sys

from jobs.cli import main

if __name__ == "__main__":
    sys.argv[1:1] = ["run"]
    main()
