"""Web pages about the models: all models, one model, the quarantine of a partition, reports, and actions.

One application, rendered on the server with Jinja2, is used twice: inside Airflow, with its users and permissions, and
by ``perennial console`` on one's own machine. What differs is a `host.Host`, and that actions exist only inside
Airflow. Every page also exists as JSON. Only routes and `rendering` import FastAPI and Jinja2; the trainer's image
loads neither.
"""

__all__ = ["access", "actions", "app", "host", "overview", "rendering", "report_files", "time_limit"]
