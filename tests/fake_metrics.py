"""Ray's library of metrics without Ray: holds names and tags against each other as Ray does, and keeps what it is given."""


class FakeMetrics:
    """Has `Counter`, `Gauge` and `Histogram`; `values` holds (name, value, tags) in order."""

    def __init__(self):
        self.values, self.built = [], []

    def _instrument(self, method):
        def build(name, description="", tag_keys=(), **bounds):
            assert name not in self.built, f"{name} was built twice"
            self.built.append(name)

            def take(value, tags):
                assert set(tags) == set(tag_keys), f"{name}: {tags}"
                assert all(isinstance(tag, str) for tag in tags.values())
                assert isinstance(value, int | float)
                self.values.append((name, value, tags))

            return type("Instrument", (), {method: staticmethod(take)})

        return build

    @property
    def Counter(self):  # noqa: N802  as in ray.util.metrics
        return self._instrument("inc")

    @property
    def Gauge(self):  # noqa: N802
        return self._instrument("set")

    @property
    def Histogram(self):  # noqa: N802
        return self._instrument("observe")
