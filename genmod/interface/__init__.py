"""The contract of a family: everything else speaks to models through it."""
