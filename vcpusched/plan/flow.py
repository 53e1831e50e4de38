"""The most that flows from one end of a network of pipes to the other, and what holds it up.

Rule: pure integers; knows nothing of claims and pCPUs.
"""

from collections.abc import Sequence


class Network:
    """Pipes from node to node, and the most that flows through them from one end to the other.

    By E. A. Dinic's method of 1970: fill up all the shortest ways there are, and look anew.
    """

    def __init__(self, source: object, target: object) -> None:
        self._nodes: dict[object, int] = {source: 0, target: 1}
        self._pipes: list[list[int]] = [[], []]
        """The numbers of the pipes that begin at each node."""
        self._ends: list[int] = []
        self._left: list[int] = []
        self.flow = 0

    def link(self, source: object, target: object, most: int) -> None:
        """Lay a pipe; the next number is that of its way back."""
        here, there = self._node(source), self._node(target)
        self._pipes[here].append(len(self._ends))
        self._pipes[there].append(len(self._ends) + 1)
        self._ends += there, here
        self._left += most, 0

    def cut(self) -> set[object]:
        """Let as much flow as can; give the nodes on the source's side of the least cut.

        Of several least cuts that with the fewest nodes, whichever ways the flow took.
        """
        while True:
            depths = self._depths()
            if depths[1] < 0:
                return {node for node, number in self._nodes.items() if depths[number] >= 0}
            self._flood(depths)

    def _node(self, name: object) -> int:
        number = self._nodes.setdefault(name, len(self._nodes))
        if number == len(self._pipes):
            self._pipes.append([])
        return number

    def _depths(self) -> list[int]:
        """Give how far each node is from the source; -1: nothing more flows there."""
        depths, level, depth = [-1] * len(self._pipes), [0], 0
        depths[0] = 0
        while level:
            depth += 1
            reached = []
            for node in level:
                for pipe in self._pipes[node]:
                    other = self._ends[pipe]
                    if self._left[pipe] and depths[other] < 0:
                        depths[other] = depth
                        reached.append(other)
            level = reached
        return depths

    def _flood(self, depths: Sequence[int]) -> None:
        """Let flow what can on ways on which each node is further than the one before."""
        ends, left = self._ends, self._left
        # Of each node the pipes not tried in vain, the next one last.
        trying = [pipes[::-1] for pipes in self._pipes]
        way: list[int] = []
        node = 0
        while True:
            pipes = trying[node]
            while pipes and not (left[pipes[-1]] and depths[ends[pipes[-1]]] == depths[node] + 1):
                pipes.pop()
            if not pipes:
                if not way:
                    return
                node = ends[way[-1] ^ 1]
                trying[node].pop()
                way.pop()
                continue
            way.append(pipes[-1])
            node = ends[pipes[-1]]
            if node != 1:
                continue
            more = min([left[pipe] for pipe in way])
            self.flow += more
            for pipe in way:
                left[pipe] -= more
                left[pipe ^ 1] += more
            # Go on from where the way is not full yet.
            full = next(place for place, pipe in enumerate(way) if not left[pipe])
            node = ends[way[full] ^ 1]
            del way[full:]
