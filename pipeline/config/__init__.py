"""Settings: the models that describe them, and the checks that run before anything starts.

`run` holds every setting that changes a result, one section per stage; `training`, `losses`, `stopping` and `servers`
hold its larger sections. `hardware` holds where a run executes and how wide; these settings never change a result.
`loader` reads YAML files and command-line overrides. `errors` defines `UserError`, the error for a user's mistake.
`sanitize` removes secrets and control characters from messages. `base` holds the base class of all sections.
"""

from pipeline.config.messages import UserError
from pipeline.config.run import Alignment, Config

__all__ = ["Alignment", "Config", "UserError"]
