"""The search space of a study, as the rest of a study sees it.

It is read and checked in `sweeptune.config`, because a command is checked there before anything starts, and rooms
import only from their left.
"""

from sweeptune.config.domains import Choice, Domain, FloatRange, IntRange, Value
from sweeptune.config.read_space import default_name, fixed_overrides, read_space
from sweeptune.config.space import Parameter, Point, Space, as_override
from sweeptune.config.study_rules import chosen_sampler, search_problems

__all__ = [
    "Choice",
    "Domain",
    "FloatRange",
    "IntRange",
    "Parameter",
    "Point",
    "Space",
    "Value",
    "as_override",
    "chosen_sampler",
    "default_name",
    "fixed_overrides",
    "read_space",
    "search_problems",
]
