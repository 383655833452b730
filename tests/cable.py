"""A network cable for tests: carries bytes to a port of this machine until it is pulled, and then, as a real cut does, says nothing at all."""

import socket
import threading
from contextlib import closing, suppress


class Cable:
    """Listens on `port` of its own; `pull` and `plug` it at will, connections that stand included."""

    def __init__(self, far_port):
        self.far_port, self.holds = far_port, threading.Event()
        self.holds.set()
        self.end = socket.create_server(("127.0.0.1", 0))
        self.port = self.end.getsockname()[1]
        self.pull, self.plug, self.close = self.holds.clear, self.holds.set, self.end.close
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        with suppress(OSError):  # Closed.
            while True:
                near, far = self.end.accept()[0], socket.create_connection(("127.0.0.1", self.far_port))
                for source, sink in ((near, far), (far, near)):
                    threading.Thread(target=self._carry, args=(source, sink), daemon=True).start()

    def _carry(self, source, sink):
        with suppress(OSError), closing(source), closing(sink):
            while data := source.recv(65536):
                self.holds.wait()
                sink.sendall(data)
