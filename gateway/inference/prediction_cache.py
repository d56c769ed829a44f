"""PredictionCache: answers of one model, by what was asked, within a budget of bytes.

It owns copies of outputs and the order in which they go: the least recently used first. (Clipper,
NSDI '17, section 4.2, has CLOCK, which spares threads a lock at every hit; here there is one
thread, and moving an entry to the end is one call.) It must never hold a view into a worker's
message, which would keep a whole batch in memory, and never more than its budget.
"""

from collections import OrderedDict

from gateway.open_requests import Outputs

# What an entry takes beside its outputs' bytes: the key, structs, their places in the table, and
# for each tensor its meta, its shape and a view: a quarter above what tracemalloc finds.
ENTRY_BYTES = 512
TENSOR_BYTES = 512


class PredictionCache:
    """`max_bytes` 0 keeps nothing."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.num_bytes = 0
        self.num_evicted = 0  # for room; `clear` does not count
        self.num_too_large = 0  # answers over the whole budget
        # All and only answers kept, the least recently used first: outputs, and what they take.
        self._entries: OrderedDict[bytes, tuple[Outputs, int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: bytes) -> bool:
        """Whether `get` would find it; it is not used by that."""
        return key in self._entries

    def get(self, key: bytes) -> Outputs | None:
        entry = self._entries.get(key)
        if entry is None:
            return None
        self._entries.move_to_end(key)
        return entry[0]

    def put(self, key: bytes, outputs: Outputs) -> None:
        """Copies the outputs. The energy they took is nothing that a hit takes."""
        size = ENTRY_BYTES + sum(TENSOR_BYTES + len(view) for view in outputs.views)
        if size > self.max_bytes:
            self.num_too_large += self.max_bytes > 0
            return
        before = self._entries.pop(key, None)
        if before is not None:
            self.num_bytes -= before[1]
        while self.num_bytes + size > self.max_bytes:
            _, (_, freed) = self._entries.popitem(last=False)
            self.num_bytes -= freed
            self.num_evicted += 1
        views = [memoryview(bytes(view)) for view in outputs.views]
        self._entries[key] = Outputs(outputs.tensors, views), size
        self.num_bytes += size

    def clear(self) -> None:
        self._entries.clear()
        self.num_bytes = 0
