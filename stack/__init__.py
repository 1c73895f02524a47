"""docker-compose.yml on a machine that reaches no registry of images: stand-ins, and podman."""
