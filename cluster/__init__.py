"""Where Ray computes: session, resources, RLlib training, the Train adapter, the pool of evaluation actors."""
