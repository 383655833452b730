"""What watches a cluster from outside: Prometheus's scrape config and a Grafana dashboard, both made from the names in `proxymix.telemetry`."""
