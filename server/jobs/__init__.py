"""Jobs: what clients ask for, kept until it is done or has failed for good."""
