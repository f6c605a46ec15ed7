"""The message hub: events of other programs come in as CloudEvents, and some of them ask for pictures."""
