"""Readers and scoring protocols of the public benchmarks of composed image retrieval, one module each.

`evaluate.benchmark` names them: [{name, protocol, path, split, template}]. What a benchmark ranks, excludes and
averages is in the docstring of its module. Each benchmark has a pinned query template, stored with every score: scores
obtained with different templates are not comparable.
"""

from tasks.evaluate.protocols import circo, cirr, dtin, fashioniq, genecis, icir, mmeb, pinpoint
from tasks.evaluate.protocols.base import Benchmark, GalleryItem, Prediction, Protocol, Query, Task

PROTOCOLS: dict[str, Protocol] = {
    module.PROTOCOL.name: module.PROTOCOL for module in (circo, cirr, fashioniq, genecis, mmeb, dtin, icir, pinpoint)
}

__all__ = ["PROTOCOLS", "Benchmark", "GalleryItem", "Prediction", "Protocol", "Query", "Task"]
