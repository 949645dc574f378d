"""The public benchmarks of composed retrieval as readers and protocols. What each ranks, takes out and averages stands
in its module.

`evaluate.benchmark` names them: [{name, protocol, path, split, template}]. A template is pinned per benchmark and
stored with each score, for scores of different templates do not compare.
"""

from tasks.evaluate.protocols import circo, cirr, fashioniq, genecis, mmeb
from tasks.evaluate.protocols.base import Benchmark, Item, Prediction, Protocol, Query, Task

PROTOCOLS: dict[str, Protocol] = {
    p.name: p for p in (circo.PROTOCOL, cirr.PROTOCOL, fashioniq.PROTOCOL, genecis.PROTOCOL, mmeb.PROTOCOL)
}

__all__ = ["PROTOCOLS", "Benchmark", "Item", "Prediction", "Protocol", "Query", "Task"]
