"""A Ray of a test's own, whatever else runs on the machine."""

import logging
import warnings
from contextlib import contextmanager

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Ray itself uses what is deprecated.
    import ray

NOBODY = 9
"""A port where nothing listens. Ray's libraries ask the dashboard even where there is none: whoever has Ray's usual port then, another test's
perhaps, which has never heard of what they ask after. Ray Train takes its workers' place away when it hears that its controller is unknown."""


def start_ray(num_cpus, variables=None, **options):
    """Args: `variables` of all workers' environment; `options` of `ray.init`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Ray's own, of its future defaults.
        ray.init(
            address="local",
            num_cpus=num_cpus,
            include_dashboard=False,
            dashboard_port=NOBODY,
            logging_level=logging.ERROR,
            log_to_driver=False,
            runtime_env={"env_vars": variables or {}},
            **options,
        )


@contextmanager
def own_ray(num_cpus, variables=None, **options):
    """From start to end."""
    start_ray(num_cpus, variables, **options)
    try:
        yield
    finally:
        ray.shutdown()
