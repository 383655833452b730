"""Language models tuned one stage at a time. The same code serves proxy and target."""
