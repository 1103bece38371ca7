"""`python -m jobs.run CONFIG [NAME=VALUE]...`: the same as `rondo run`, for `ray job submit`."""

import sys

from jobs.cli import main

if __name__ == "__main__":
    sys.argv[1:1] = ["run"]
    main()
