"""Leases: of several processes on several machines, one works below a root at a time.

A lease is a log of numbered objects, each created only if absent. To take the lease, to publish a result and
to give the lease back are entries of the same log, so two processes that want to do one of these at the same
time compete for one object, and the store lets one win. The position of the entry by which a process took the
lease is its *fencing number*: it grows with every holder.

No clock is compared with another machine's. A holder renews its lease by changing a heartbeat object; another
process takes the lease over after it has watched that object for the lease's time, by its own clock, and saw
no change. The clocks of two machines must run at the same speed to within a factor of two, no more.

A holder that was frozen and wakes up after a takeover finds its next position taken, so it can publish
nothing. A result is part of its entry: if its holder stops between the entry and the file, the next holder
writes the file. So a result is published before the takeover, or not at all.
"""

from genmod.lease.holder import LeaseHolder, this_process
from genmod.lease.lease import Busy, Lease, LeaseLost, acquire

__all__ = ["Busy", "Lease", "LeaseHolder", "LeaseLost", "acquire", "this_process"]
