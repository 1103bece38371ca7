"""Settings: what a person writes, checked before anything starts.

`run` holds every setting that decides a result, one section a stage; `training`, `losses`, `stopping` and `servers` are
its larger sections. `hardware` says where and how wide to run, which never changes a result. `loader` reads YAML files
and command-line overrides. `errors` has the error that a user's mistake ends in, and `sanitize` keeps secrets and
control characters out of every message. `base` is what all sections are made of.
"""

from pipeline.config.errors import UserError
from pipeline.config.run import Alignment, Config

__all__ = ["Alignment", "Config", "UserError"]
