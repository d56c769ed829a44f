"""What an engine needs of a device's memory: fixed pages under address ranges that never change.

Owns the seam between engines and devices (docs/architecture.md, "The weight cache"). Which page
belongs to whom is the page cache's business (gpuworker/page_cache.py): a device lays the pages it
is told to under a range, and takes them away again.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from gpuworker.devices.host import AddressRange

Bytes = npt.NDArray[np.uint8]


class WeightPages(Protocol):
    """`total_pages` pages of `page_bytes`, all of them there from the start.

    Ranges may be loaded and unloaded by one thread while another executes over other ranges. Two
    ranges may show the same page: the device does not know whose it is.
    """

    @property
    def page_bytes(self) -> int: ...

    @property
    def total_pages(self) -> int: ...

    def reserve(self, num_bytes: int) -> AddressRange:
        """Addresses for so many bytes, rounded up to whole pages; unusable until loaded.

        Raises DeviceError.
        """
        ...

    def load(self, addresses: AddressRange, pages: Sequence[int], blob: Bytes) -> int:
        """Lay these pages under the range, in that order, and copy `blob` to its start.

        Returns how long that took in ns, of the device's time where it has one. When it returns the
        bytes are there for whoever executes next. If it raises, nothing is mapped. Raises
        ValueError where the pages do not fit the range or the blob, and DeviceError.
        """
        ...

    def unload(self, addresses: AddressRange) -> None:
        """Take the pages away; the addresses stay reserved. Nothing may execute over them."""
        ...

    def read(self, addresses: AddressRange, num_bytes: int) -> Bytes:
        """A copy of the first bytes of a loaded range."""
        ...

    def close(self) -> None:
        """Give everything back. Nothing may point into any range any more."""
        ...
