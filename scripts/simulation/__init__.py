"""The parts of `simulate.py`."""
