"""The tests. Nothing in here may reach a network: the hub is switched off before any library asks for it."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
