"""What, how and on what: the three records every question is made of."""

from rigsize.spec.cluster import Cluster
from rigsize.spec.optimizers import OPTIMIZERS
from rigsize.spec.precision import POLICIES, PrecisionPolicy, find_policy
from rigsize.spec.strategy import Strategy
from rigsize.spec.together import check_together
from rigsize.spec.workload import TASKS, USES, Workload

__all__ = [
    "OPTIMIZERS",
    "POLICIES",
    "TASKS",
    "USES",
    "Cluster",
    "PrecisionPolicy",
    "Strategy",
    "Workload",
    "check_together",
    "find_policy",
]
