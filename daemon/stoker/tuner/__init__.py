"""Measured settings: when this machine is idle, each model's best ones are searched for and kept.

`policy` and `drift` decide, `job` is one model's search, `labs` and `session` measure for it,
`service` owns them all.
"""

from stoker.tuner.service import Tuner

__all__ = ["Tuner"]
