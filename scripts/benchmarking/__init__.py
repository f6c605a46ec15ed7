"""The benchmark's parts: what is measured (forward, serving, parity), against what, and how it is told."""
