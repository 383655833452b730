"""What answers HTTP: the frozen controller as a small stateless service, and the client that asks it.

StageBoundary → client → HTTP + JSON → app (on Ray Serve) → controller → Decision
"""
