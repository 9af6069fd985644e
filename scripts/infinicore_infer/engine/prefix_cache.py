"""Remembers the keys and values of prompt beginnings, so that later requests need not compute them.

A radix tree whose edges are whole KV blocks. Every node owns a KV cache that holds the tokens from
the root to its end; caches of one branch share their blocks inside the library, so a node costs
only its own edge. Nobody writes to a node's cache, and a cache is handed out as a copy-on-write
duplicate of exactly the tokens that were compared, so a match is never stale.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from infinicore_infer.engine.prefix_memory import Lineage, PrefixMemory, cut
from infinicore_infer.engine.prefix_store import PrefixFile, PrefixStore
from infinicore_infer.native.model import KVCache, NativeModel


@dataclass(slots=True, eq=False)
class PrefixNode:
    """An edge of the tree and its end.

    Attributes:
        edge: The edge's tokens, whole blocks; none at the root.
        depth: Tokens from the root to the end of the edge.
        parent: The node where the edge begins.
        cache: Holds ``depth`` tokens.
        lineage: Whose memory they lie in.
        used: When it was last of use.
        children: By the first block of their edges.
    """

    edge: tuple[int, ...]
    depth: int
    parent: PrefixNode | None
    cache: KVCache | None
    lineage: Lineage
    used: int
    children: dict[tuple[int, ...], PrefixNode]


class PrefixCache:
    """A radix tree of token prefixes, least recently used ones dropped first.

    Not thread-safe: it calls the library and belongs to the thread that does.

    Attributes:
        hits: Lookups that found something.
        lookups: All lookups.
        store: Prefixes on disk.
    """

    def __init__(
        self, model: NativeModel, capacity_bytes: int, store: PrefixStore | None = None
    ) -> None:
        """Make an empty cache.

        Args:
            model: The model whose caches are kept.
            capacity_bytes: Most bytes to keep; 0: remember nothing.
            store: Where to look for what is not known, and to keep what is often used.
        """
        stats = model.stats()
        self._model = model
        self._block = stats["kv_block_tokens"]
        self._block_bytes = stats["kv_block_bytes"]
        self._capacity = capacity_bytes
        self._root = PrefixNode((), 0, None, None, (), 0, {})
        self._memory = PrefixMemory()
        self._clock = 0
        self._count = 0
        self.hits = 0
        self.lookups = 0
        self.store = store

    @property
    def bytes(self) -> int:
        """Bytes of all remembered blocks."""
        return self._memory.tokens // self._block * self._block_bytes

    def __len__(self) -> int:
        """Return the number of nodes."""
        return self._count

    def _nodes(self) -> Iterator[PrefixNode]:
        stack = list(self._root.children.values())
        while stack:
            node = stack.pop()
            stack += node.children.values()
            yield node

    def _key(self, tokens: Sequence[int], at: int) -> tuple[int, ...]:
        return tuple(tokens[at : at + self._block])

    def _common(self, edge: tuple[int, ...], tokens: Sequence[int], at: int, end: int) -> int:
        """Return how many tokens of an edge, in whole blocks, equal those from ``at`` on."""
        same = self._block
        while same < len(edge) and at + same + self._block <= end:
            if edge[same : same + self._block] != self._key(tokens, at + same):
                break
            same += self._block
        return same

    def _walk(self, tokens: Sequence[int], end: int) -> tuple[PrefixNode, int]:
        """Return the deepest node that shares something with ``tokens[:end]`` and how much."""
        self._clock += 1
        node, at = self._root, 0
        while at + self._block <= end:
            child = node.children.get(self._key(tokens, at))
            if child is None:
                break
            child.used = self._clock
            same = self._common(child.edge, tokens, at, end)
            node, at = child, at + same
            if same < len(child.edge):
                break
        return node, at

    def match(self, tokens: Sequence[int], sibling: bool = False) -> tuple[KVCache | None, Lineage]:
        """Return a cache with the longest known beginning of a prompt, or none, and its lineage.

        The caller owns the cache and computes what is missing, so the lineage goes on with that. At
        least one token is left out, because its logits are wanted.

        Args:
            tokens: The prompt.
            sibling: Whether it was looked up before for the same request, or comes from a file, so
                that finding it says nothing about how often it is of use.
        """
        if self._capacity == 0:
            return None, ()
        self.lookups += 1
        node, length = self._walk(tokens, len(tokens) - 1)
        if self.store is not None and not sibling and node.cache is not None:
            self.store.reused(tokens[:length], node.cache)
        lineage = self._memory.computed(node.lineage, length)
        if length == 0:
            return None, lineage
        assert node.cache is not None
        self.hits += 1
        return self._model.duplicate_kv_cache(node.cache, length), lineage

    def missing(self, tokens: Sequence[int]) -> list[PrefixFile]:
        """Return the files that know much more of a prompt than is remembered, longest first."""
        if self.store is None or self._capacity == 0:
            return []
        _, known = self._walk(tokens, len(tokens) - 1)
        most = self._capacity // self._block_bytes * self._block
        return self.store.find(tokens[:-1], known, most)

    def insert(self, tokens: Sequence[int], cache: KVCache, lineage: Lineage | None = None) -> None:
        """Remember a sequence, unless all of it is known.

        Args:
            tokens: What the cache holds, from its beginning; less than a block at the end is
                dropped.
            cache: The cache, which stays the caller's.
            lineage: What :meth:`match` gave with the cache; ``None``: it shares no memory.
        """
        end = len(tokens) // self._block * self._block
        if end == 0 or end // self._block * self._block_bytes > self._capacity:
            return
        node, at = self._walk(tokens, end)
        if at == end:
            return
        if at < node.depth:
            node = self._split(node, at)
        kept = self._model.duplicate_kv_cache(cache, end)
        whose = cut(self._memory.computed((), 0) if lineage is None else lineage, end)
        leaf = PrefixNode(tuple(tokens[at:end]), end, node, kept, whose, self._clock, {})
        node.children[leaf.edge[: self._block]] = leaf
        self._memory.add(whose, end)
        self._count += 1
        while self.bytes > self._capacity and self.evict():
            pass

    def _split(self, node: PrefixNode, depth: int) -> PrefixNode:
        """Cut a node's edge at a depth inside it and return the new upper node."""
        assert node.parent is not None and node.cache is not None
        split = len(node.edge) - (node.depth - depth)
        cache = self._model.duplicate_kv_cache(node.cache, depth)
        whose = cut(node.lineage, depth)
        upper = PrefixNode(node.edge[:split], depth, node.parent, cache, whose, node.used, {})
        node.parent.children[upper.edge[: self._block]] = upper
        node.edge, node.parent = node.edge[split:], upper
        upper.children[node.edge[: self._block]] = node
        self._memory.add(whose, depth)
        self._count += 1
        return upper

    def evict(self) -> bool:
        """Forget the least recently used leaf; return whether there may be more memory now.

        Its memory comes back unless a running request shares it.
        """
        leaves = (node for node in self._nodes() if not node.children)
        victim = min(leaves, key=lambda node: node.used, default=None)
        if victim is None:
            # A prefix that is being written to disk holds memory as well.
            return self.store is not None and self.store.wait()
        assert victim.parent is not None and victim.cache is not None
        del victim.parent.children[victim.edge[: self._block]]
        victim.cache.close()
        self._memory.remove(victim.lineage, victim.depth)
        self._count -= 1
        return True

    def clear(self) -> None:
        """Forget everything, and wait until nothing is being written to disk."""
        while self.evict():
            pass
