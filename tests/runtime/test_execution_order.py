"""A file in the order that `file_order` finds is walked in the order from which it was found."""

from __future__ import annotations

import random

import pytest

from onnxft.runtime.execution_order import file_order

Edges = list[list[int]]
"""For each node those that it reads."""


def walk(reads: Edges) -> list[int]:
    """The runtime's order of nodes: depth first from the nodes that nothing reads, the last in the file first."""
    starts = [n for n in range(len(reads)) if not any(n in others for others in reads)]
    waiting, done, seen = [(n, False) for n in starts], [], set()
    while waiting:
        node, left = waiting.pop()
        if left:
            done.append(node)
        elif node not in seen:
            seen.add(node)
            waiting += [(node, True), *((n, False) for n in sorted(reads[node]))]
    return done


def random_graph(seed: int, nodes: int = 40) -> Edges:
    """Edges without a cycle between nodes that stand in no particular order."""
    draw = random.Random(seed)
    places = draw.sample(range(nodes), nodes)
    reads: Edges = [[] for _ in range(nodes)]
    for i, place in enumerate(places):
        reads[place] = sorted(draw.sample(places[:i], min(i, draw.randrange(4))))
    return reads


def renamed(reads: Edges, order: list[int]) -> Edges:
    """The graph with the nodes in another order."""
    place = {node: i for i, node in enumerate(order)}
    return [[place[n] for n in reads[node]] for node in order]


@pytest.mark.parametrize("seed", range(50))
def test_the_order_of_execution_is_kept(seed: int) -> None:
    executed = renamed(graph := random_graph(seed), walk(graph))  # as the runtime writes it
    order = file_order([[f"v{n}" for n in reads] for reads in executed], [[f"v{n}", ""] for n in range(len(executed))])
    assert sorted(order) == list(range(len(executed)))
    assert [order[n] for n in walk(renamed(executed, order))] == list(range(len(executed)))


def test_the_order_of_writing_would_not_keep_it() -> None:
    graphs = [random_graph(seed) for seed in range(50)]
    written = [renamed(graph, walk(graph)) for graph in graphs]
    assert not any(walk(graph) == list(range(len(graph))) for graph in written)
