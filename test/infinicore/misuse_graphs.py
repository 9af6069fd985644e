"""More programs that break a rule on purpose: those of graphs, which newer InfiniCore has.

``python -m infinicore.misuse_graphs NAME...``, as ``infinicore.misuse``.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from ctypes import byref, c_float, c_size_t, c_void_p
from typing import Any

from infinicore.misuse import D2D, H2D, Runtime, case, main


def recorded(r: Runtime, *launches: Callable[[], object]) -> tuple[list[int], c_void_p]:
    """Records what is called; returns the statuses of beginning and ending, and the graph."""
    graph = c_void_p()
    statuses = [int(r.rt.infinirtStreamBeginCapture(r.stream, 1))]
    for launch in launches:
        launch()
    statuses.append(int(r.rt.infinirtStreamEndCapture(r.stream, byref(graph))))
    return statuses, graph


def executable(r: Runtime, graph: c_void_p) -> c_void_p:
    exec_, node, log = c_void_p(), c_void_p(), ctypes.create_string_buffer(64)
    arguments = (byref(exec_), graph, byref(node), log, c_size_t(64))
    assert r.rt.infinirtGraphInstantiate(*arguments) == 0
    assert r.rt.infinirtGraphDestroy(graph) == 0
    return exec_


def copy_graph(r: Runtime) -> tuple[c_void_p, c_void_p, c_void_p]:
    a, b = r.upload([1, 2, 3, 4]), r.upload([0, 0, 0, 0])
    _, graph = recorded(r, lambda: r.copy(b, a, 16, D2D))
    return a, b, executable(r, graph)


@case
def graph(r: Runtime) -> Any:
    """Nothing happens while it is recorded; then it happens as often as it is launched."""
    a, b, exec_ = copy_graph(r)
    before, results = r.download(b, 4), []
    for values in ([5, 6, 7, 8], [9, 10, 11, 12]):
        array = (c_float * 4)(*values)
        r.copy(a, array, 16, H2D)
        assert r.rt.infinirtGraphLuanch(exec_, r.stream) == 0
        results.append(r.download(b, 4))
    assert r.rt.infinirtGraphExecDestroy(exec_) == 0
    for memory in (a, b):
        r.rt.infinirtFree(memory)
    return [before, results]


@case
def graph_waits(r: Runtime) -> Any:
    return recorded(r, r.sync)[0]


@case
def graph_allocates(r: Runtime) -> Any:
    return recorded(r, lambda: r.rt.infinirtMalloc(byref(c_void_p()), c_size_t(4)))[0]


@case
def graph_of_pageable_memory(r: Runtime) -> Any:
    a, array = r.upload([1, 2, 3, 4]), (c_float * 4)(5, 6, 7, 8)
    statuses, _ = recorded(r, lambda: r.copy(a, array, 16, H2D))
    r.rt.infinirtFree(a)
    return statuses


@case
def graph_of_freed_memory(r: Runtime) -> Any:
    a, b, exec_ = copy_graph(r)
    r.rt.infinirtFree(a)
    status = int(r.rt.infinirtGraphLuanch(exec_, r.stream))
    r.rt.infinirtGraphExecDestroy(exec_)
    r.rt.infinirtFree(b)
    return status


@case
def graph_destroyed_in_flight(r: Runtime) -> Any:
    a, b, exec_ = copy_graph(r)
    r.rt.infinirtGraphLuanch(exec_, r.stream)
    r.rt.infinirtGraphExecDestroy(exec_)
    r.sync()
    for memory in (a, b):
        r.rt.infinirtFree(memory)


if __name__ == "__main__":
    main()
