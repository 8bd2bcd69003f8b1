"""Every name of ours that appears on a cluster: API group, labels, annotations."""

from __future__ import annotations

GROUP = "kvquant.dev"
VERSION = "v1alpha1"
PLURAL = "kvquantrollouts"
KIND = "KVQuantRollout"
API_VERSION = f"{GROUP}/{VERSION}"
FINALIZER = f"{GROUP}/finalizer"
FIELD_MANAGER = "kvquant-operator"

# Labels that the operator sets.
LABEL_ROLLOUT = f"{GROUP}/rollout"
"""On every object and pod of a rollout: the rollout's name."""
LABEL_POOL = f"{GROUP}/pool"
"""On pods of a pool that the operator made: the pool's (Deployment's) name."""
LABEL_SERVING = f"{GROUP}/serving"
"""On a pod that has passed the regime proof: "true". The pool's Service selects by it."""
LABEL_ROUTER = f"{GROUP}/router"
"""On router objects, and on pools that a router serves: the router's name."""
LABEL_SLOT = f"{GROUP}/slot"
"""On pools: the router slot (`blue` or `green`) that the pool fills."""
LABEL_LEADER = f"{GROUP}/leader"
"""On the pod of the operator that decides, where there are several: "true". Routers and
Alertmanager reach the operator by Services that select by it."""
LABEL_KILL_SWITCH = f"{GROUP}/kill-switch"
"""On the ConfigMap that sends every request of the cluster to the baselines."""
LABEL_RECORD = f"{GROUP}/record"
"""On the ConfigMap that holds every decision of a rollout: "true"."""
LABEL_EVALUATION = f"{GROUP}/evaluation"
"""On the Jobs of a rollout's evaluation and on their pods: the Job's name."""

ANNOTATION_VERIFIED = f"{GROUP}/verified-container"
"""On a serving pod: the container id that the regime proof saw. Another id needs a new proof."""
ANNOTATION_HOLDER = f"{GROUP}/held-by"
"""On a router's ConfigMap: `name/uid` of the rollout that sets its weights."""
ANNOTATION_SETTLED = f"{GROUP}/settled"
"""On a router's ConfigMap: "true" when its holder has ended and another rollout may take it."""
ANNOTATION_SERVING_POOL = f"{GROUP}/serving-pool"
"""On a router's ConfigMap: the Deployment that every request goes to, or most of them while a
rollout is on its way. A rollout must start from it."""
ANNOTATION_RETIRED_BY = f"{GROUP}/retired-by"
"""On an old pool: `name/uid` of the rollout that scaled it to zero, which happens once. What its
owner does with it afterwards is not undone."""
ANNOTATION_RESTORED_BY = f"{GROUP}/restored-by"
"""On a target: `name/uid` of the rollout that gave it its pods back when it adopted the promoted
dtype, which happens once."""
ANNOTATION_PINNED = f"{GROUP}/pinned"
"""On a target's autoscaler while its rollout is on its way: who holds it, and its own bounds."""
ANNOTATION_RECORDED = f"{GROUP}/recorded"
"""On a rollout's record: number of the newest decision in it."""
ANNOTATION_ARCHIVED = f"{GROUP}/archived"
"""On a rollout's record: number of the newest decision that an archive was seen to hold. It may lag
behind."""

# Annotations by which people (and the CLI) ask for something. The value of the one-shot requests
# (promote, abort, retry) is a token: each new token is one request, handled once.
ANNOTATION_PAUSED = f"{GROUP}/paused"
"""Present with any value but "false": hold where it is; rollback and kill still act."""
ANNOTATION_KILLED = f"{GROUP}/killed"
"""Present with any value but "false": every request goes to the baseline at once."""
ANNOTATION_PROMOTE = f"{GROUP}/promote"
ANNOTATION_ABORT = f"{GROUP}/abort"
ANNOTATION_RETRY = f"{GROUP}/retry"

REQUEST_ANNOTATIONS = (
    ANNOTATION_PAUSED,
    ANNOTATION_KILLED,
    ANNOTATION_PROMOTE,
    ANNOTATION_ABORT,
    ANNOTATION_RETRY,
)

KILL_SWITCH_CONFIGMAP = "kvquant-kill-switch"
"""In the operator's namespace, with LABEL_KILL_SWITCH; `data.killed: "true"` kills cluster-wide."""

RECORD_SUFFIX = "-record"
"""A rollout's record is the ConfigMap `<name of the rollout>-record` beside it."""

SLOTS = ("blue", "green")
"""A router's two upstream clusters; baseline and canary swap roles between them."""
