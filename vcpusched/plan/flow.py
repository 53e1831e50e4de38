"""The most that flows from one end of a network of pipes to the other, and what holds it up.

Rule: pure integers; knows nothing of claims and pCPUs.
"""

from collections import Counter, defaultdict


class Network:
    """Pipes from node to node, and the most that flows through them from one end to the other.

    By E. A. Dinic's method of 1970: fill up all the shortest ways there are, and look anew.
    """

    def __init__(self, source: object, target: object) -> None:
        self._source, self._target = source, target
        self._left: defaultdict[object, Counter[object]] = defaultdict(Counter)
        """What may still flow from each node to each that it has a pipe to, or from."""
        self.flow = 0

    def link(self, source: object, target: object, most: int) -> None:
        """Lay a pipe."""
        self._left[source][target] += most
        self._left[target][source] += 0  # by which flow can be taken back

    def cut(self) -> set[object]:
        """Let as much flow as can; give the nodes on the source's side of the least cut.

        Of several least cuts that with the fewest nodes, whichever ways the flow took.
        """
        while self._target in (depths := self._depths()):
            self.flow += self._flood(self._source, sum(self._left[self._source].values()), depths)
        return set(depths)

    def _depths(self) -> dict[object, int]:
        """Give how far from the source each node is that something more may flow to."""
        depths, reached = {self._source: 0}, [self._source]
        for node in reached:
            for other, left in self._left[node].items():
                if left and other not in depths:
                    depths[other] = depths[node] + 1
                    reached.append(other)
        return depths

    def _flood(self, node: object, most: int, depths: dict[object, int]) -> int:
        """Let flow on from a node what can, on ways that lead further with each node."""
        if node == self._target:
            return most
        sent = 0
        for other, left in self._left[node].items():
            if left and depths.get(other) == depths[node] + 1:
                more = self._flood(other, min(most - sent, left), depths)
                sent += more
                self._left[node][other] -= more
                self._left[other][node] += more
                if sent == most:
                    return sent
        depths[node] = -1  # nothing more flows there this time
        return sent
