"""The user hears of a head that is gone, once, and of nothing while it answers."""

import socket
import threading
import time

from cluster.head_watch import watched_head


def test_a_silence_is_told_once_and_again_after_an_answer():
    told, heard = [], threading.Event()

    def tell(text):
        told.append(text)
        heard.set()

    head = socket.create_server(("127.0.0.1", 0))
    port = head.getsockname()[1]
    with watched_head(f"127.0.0.1:{port}", tell, period_s=0.1, patience_s=0.5):
        assert not heard.wait(1.0)
        for silences in (1, 2):
            head.close()
            assert heard.wait(60)
            time.sleep(0.7)  # Silent still, and told already.
            assert len(told) == silences
            assert f"127.0.0.1:{port}, has not answered" in told[-1]
            heard.clear()
            head = socket.create_server(("127.0.0.1", port))
            head.accept()[0].close()
    head.close()
