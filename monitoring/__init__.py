"""What people watch the service with: dashboard, alerts and recording rules, from the metrics.

`python -m monitoring.generate` writes them into docker/, `python -m monitoring.picture` draws the
dashboard's panels over a real replay.
"""
